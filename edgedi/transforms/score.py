"""How good a network is, one number, more is better: a user's metric, accuracy, or likeness to the original."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from edgedi.errors import NotFinite
from edgedi.transforms.data import Batch, Data
from edgedi.transforms.store import digest_of_model

Metric = Callable[[nn.Module, Any], float]
"""``metric(model, validate)``: the model in evaluation mode, ``validate`` as the user gave it; more is better."""

_Z95 = 1.959964


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """``value``; of accuracy also ``count``, the number of answers that it is a share of."""

    value: float
    count: int | None = None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of an accuracy (Wilson, 1927); ``None`` of other metrics."""
        if self.count is None:
            return None
        n, p, z2 = self.count, self.value, _Z95**2
        middle, half = p + z2 / (2 * n), _Z95 * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
        return (middle - half) / (1 + z2 / n), (middle + half) / (1 + z2 / n)

    def __str__(self) -> str:
        if self.interval is None:
            return f"{self.value:.4g}"
        low, high = self.interval
        return f"{self.value:.2%} [{low:.2%}, {high:.2%}]"


Judge = Callable[[nn.Module], Score]
"""Gives any network its score: the same data and metric for all."""


def judging_once(judge: Judge) -> Judge:
    """``judge``, but a network that it has seen is known by its class and weights, and takes no time again."""
    scores: dict[str, Score] = {}

    def known(model: nn.Module) -> Score:
        digest = digest_of_model(model)
        if digest not in scores:
            scores[digest] = judge(model)
        return scores[digest]

    return known


def judge_by_accuracy(data: Data) -> Judge:
    """The share of labels that are the greatest output along dimension 1: of images, or of pixels."""

    def judge(model: nn.Module) -> Score:
        return _share_right(model, ((batch, batch.labels) for batch in data))

    return judge


def judge_by_metric(metric: Metric, validate: Any) -> Judge:
    """What the user's callable says; ``NotFinite`` where that is no finite number."""

    def judge(model: nn.Module) -> Score:
        with torch.no_grad():
            given = asked("metric", metric, _evaluating(model), validate)
        value = _number(given)
        if not math.isfinite(value):
            raise NotFinite(f"metric gave {given!r}; it must give a finite number, more for a better network")
        return Score(value=value)

    return judge


def asked(name: str, given: Callable[..., Any], *arguments: Any) -> Any:
    """What the user's callable returns; ``ValueError`` with its ``name`` where it fails."""
    try:
        return given(*arguments)
    except Exception as error:  # a user's own code may raise anything
        raise ValueError(f"{name} failed with {type(error).__name__}: {error}") from error


def forgiving(judge: Judge, say: Callable[[str], None]) -> Judge:
    """For networks on the way: one without a finite score has the least there is, and the others are tried."""

    def judged(model: nn.Module) -> Score:
        try:
            return judge(model)
        except NotFinite as error:
            say(f"a network counts as too bad: {error}")
            return Score(value=-math.inf)

    return judged


def _number(given: Any) -> float:
    """As a float, also from a tensor or array of one; not a number where it is none."""
    try:
        return math.nan if isinstance(given, str) else float(given)
    except (TypeError, ValueError, RuntimeError):
        return math.nan


def judge_by_likeness(original: nn.Module, data: Data) -> Judge:
    """How like the original's answers are, without labels.

    Of classes, [batch, classes]: the share of inputs with the same greatest class. Of anything else, 1 less the squared
    difference over the squared deviation from the mean: 1 for the same answers, 0 for ones as good as a constant.
    """
    batches = list(data)  # once: they may come in another order each time
    answers = [leaves_of(answer_to(original, batch)) for batch in batches]
    if is_classes(answers):
        classes = [answer[0].argmax(1) for answer in answers]

        def judge(model: nn.Module) -> Score:
            return _share_right(model, zip(batches, classes, strict=True))
    else:
        spread = sum(float((leaf.double() - leaf.double().mean()).square().sum()) for a in answers for leaf in a)

        def judge(model: nn.Module) -> Score:
            pairs = (
                (leaves_of(answer_to(model, batch)), answer) for batch, answer in zip(batches, answers, strict=True)
            )
            off = sum(
                float((a.double() - b.double()).square().sum())
                for ours, theirs in pairs
                for a, b in zip(ours, theirs, strict=True)
            )
            return Score(value=1 - off / max(spread, 1e-30))

    return judge


def answer_to(model: nn.Module, batch: Batch) -> Any:
    """The answer in evaluation mode."""
    with torch.no_grad():
        return _evaluating(model)(*batch.arguments)


def _evaluating(model: nn.Module) -> nn.Module:
    return model.eval() if model.training else model


def leaves_of(answer: Any) -> list[Tensor]:
    """The tensors of an answer that can be compared."""
    return [leaf for leaf in pytree.tree_leaves(answer) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def is_classes(answers: Sequence[Sequence[Tensor]]) -> bool:
    """Whether each answer is one tensor [batch, classes]."""
    return all(len(answer) == 1 and answer[0].dim() == 2 and answer[0].shape[1] > 1 for answer in answers)


def _share_right(model: nn.Module, pairs: Iterable[tuple[Batch, Any]]) -> Score:
    right = count = 0
    for batch, given in pairs:
        answer = leaves_of(answer_to(model, batch))
        if not answer or answer[0].dim() < 2:
            raise ValueError("accuracy needs an output [batch, classes, ...]; pass metric=callable for other answers")
        found, labels = answer[0].argmax(1), torch.as_tensor(given)
        if found.shape != labels.shape:
            raise ValueError(
                f"labels are of shape {list(labels.shape)} where the classes found are {list(found.shape)}; give whole "
                "numbers of that shape, or metric=callable"
            )
        right, count = right + int((found.cpu() == labels.cpu()).sum()), count + labels.numel()
    return Score(value=right / count, count=count)
