"""The one training of ``compact``: a network learns to answer as the original does."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgedi.errors import CompactionError
from edgedi.transforms.data import Batch, Data, takes_channels_last
from edgedi.transforms.numbers import generator_of
from edgedi.transforms.recover.faster import (
    as_usual,
    batch_channels_last,
    channels_last,
    contiguous,
    in_float32,
    may_be_halves,
)
from edgedi.transforms.recover.losses import blend_of, distance, is_class_labels
from edgedi.transforms.recover.norms import fold, norms_of, put_back
from edgedi.transforms.recover.reading import Reader
from edgedi.transforms.recover.schedule import Schedule
from edgedi.transforms.score import Judge, Score, asked, leaves_of
from edgedi.transforms.store import NO_SLOT, Slot
from edgedi.transforms.task import Budget, Loss, Say

FIRST_BATCHES = 8
"""So many batches show what the normalisations put back must know."""
SCORING = 0.1
"""The share of a training's seconds that scores on the way may take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How training is done."""

    learning_rate: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 1e-4
    longest_gradient: float = 5.0
    """Gradients are clipped to this norm."""
    warm_up_steps: int = 20
    temperature: float = 4.0
    blends: float = 0.0
    """The share of steps in which inputs are blended; none where ``loss`` is given, as labels belong to the inputs. A
    half of the steps cost a halved ResNet-20 2 points of accuracy after one epoch of CIFAR-10; longer ones may gain."""
    loss_share: float = 0.5
    """The weight of ``loss`` where it is given; the rest is the distance to the original's answers."""
    label_share: float = 0.0
    """The same of labels that are classes, where ``loss`` is not given."""
    average: float = 15.0
    """The weights returned are an average over about the last 1/(1 + this) of the steps (Shamir and Zhang, 2013)."""
    normalises: bool = True
    halves: bool = True
    """Convolutions and products in bfloat16 where the processor has it and answers are classes, whose order survives
    rounding; weights, sums and losses stay float32."""


RECIPE = Recipe()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trained:
    """A network in evaluation mode, and the steps that its training took."""

    model: nn.Module
    num_steps: int = 0


def _quiet(line: str) -> None:
    """Says nothing."""


class Training:
    """The network under training, the average of its weights, and the optimiser."""

    def __init__(
        self, student: nn.Module, teacher: nn.Module, loss: Loss | None, recipe: Recipe, first: Sequence[Batch]
    ):
        """``first``: batches that show what the normalisations put back must know."""
        self._loss, self._recipe = loss, recipe
        self._example = first[0].arguments
        self._frozen = [name for name, parameter in student.named_parameters() if not parameter.requires_grad]
        self.student = copy.deepcopy(student).eval()
        self._folds = recipe.normalises and put_back(self.student, teacher, first)
        for parameter in self.student.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
        self._teacher = copy.deepcopy(teacher)
        self._channels_last = takes_channels_last(self._teacher, self._example)
        if self._channels_last:
            channels_last(self.student)
            channels_last(self._teacher)
        with torch.no_grad():
            answer = leaves_of(self._teacher(*self._example))
        self._device = answer[0].device
        self._half = recipe.halves and may_be_halves(answer)
        self.average = copy.deepcopy(self.student)
        self._optimizer = torch.optim.SGD(
            [parameter for parameter in self.student.parameters() if parameter.requires_grad],
            lr=recipe.learning_rate, momentum=recipe.momentum, weight_decay=recipe.weight_decay, nesterov=True,
        )  # fmt: skip

    def step(self, batch: Batch, schedule: Schedule, generator: torch.Generator) -> float:
        """One step; the loss before it."""
        warm = min(1.0, (schedule.step + 1) / self._recipe.warm_up_steps)
        for group in self._optimizer.param_groups:
            group["lr"] = self._recipe.learning_rate * schedule.rate * warm
        for norm in norms_of(self.student).values():
            norm.train(batch.size > 1)
        loss = self._loss_of(batch_channels_last(batch) if self._channels_last else batch, generator)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        length = nn.utils.clip_grad_norm_(self.student.parameters(), self._recipe.longest_gradient)
        if not bool(torch.isfinite(length)):
            raise CompactionError(
                f"training came to a gradient of {float(length)} at step {schedule.step}; are inputs and loss finite?"
            )
        self._optimizer.step()
        self.student.eval()
        self._add_to_average(schedule.step + 1)
        return float(loss.detach())

    def _loss_of(self, batch: Batch, generator: torch.Generator) -> Tensor:
        blends = self._loss is None and float(torch.rand((), generator=generator)) < self._recipe.blends
        blend = blend_of(batch, generator) if blends else None
        arguments = batch.arguments if blend is None else blend.of(batch.arguments)
        with torch.no_grad():
            target = self._answer_of(self._teacher, arguments)
        with torch.enable_grad():
            answer = self._answer_of(self.student, arguments)
            found = distance(answer, target, self._recipe.temperature)
            if self._loss is not None:
                return found.lerp(asked("loss", self._loss, contiguous(answer), batch.labels), self._recipe.loss_share)
            if not self._recipe.label_share or not is_class_labels(answer, batch.labels):
                return found
            (logits,) = leaves_of(answer)
            labels = batch.labels.long()
            labelled = F.cross_entropy(logits, labels) if blend is None else blend.cross_entropy(logits, labels)
            return found.lerp(labelled, self._recipe.label_share)

    def _answer_of(self, model: nn.Module, arguments: tuple[Any, ...]) -> Any:
        if not self._half:
            return model(*arguments)
        with torch.autocast(self._device.type, torch.bfloat16):
            return in_float32(model(*arguments))

    @torch.no_grad()
    def _add_to_average(self, step: int) -> None:
        share = min(1.0, (self._recipe.average + 1) / (self._recipe.average + step))
        ours, theirs = (
            [tensor for tensor in (*model.parameters(), *model.buffers()) if tensor.is_floating_point()]
            for model in (self.average, self.student)
        )
        torch._foreach_lerp_(ours, theirs, share)

    def state(self) -> dict[str, Any]:
        """All of it, for a checkpoint."""
        return {
            "student": self.student.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self._optimizer.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """As it was when ``state`` was made."""
        self.student.load_state_dict(state["student"])
        self.average.load_state_dict(state["average"])
        self._optimizer.load_state_dict(state["optimizer"])

    def result(self) -> nn.Module:
        """The average, its normalisations folded again."""
        if self._folds:
            fold(self.average, self._example)
        for name, parameter in self.average.named_parameters():
            parameter.requires_grad_(name not in self._frozen)
        return as_usual(self.average)


def distil(
    student: nn.Module,
    teacher: nn.Module,
    data: Data,
    *,
    num_steps: int | None = None,
    budget: Budget | None = None,
    loss: Loss | None = None,
    recipe: Recipe = RECIPE,
    seed: int = 0,
    say: Say = _quiet,
    judge: Judge | None = None,
    judge_s: float = 0.0,
    slot: Slot = NO_SLOT,
) -> Trained:
    """A copy of ``student``, trained towards the answers of ``teacher``, the original.

    It is trained as it is in evaluation mode: no dropout, and the outputs that it gives then. Where ``teacher``
    normalises and ``student`` hands on what was folded, it normalises during training and is folded again.

    The training has ``num_steps`` steps, or as many as fit into ``budget``: they are timed, and counted anew on the
    way. ``loss(outputs, labels)``: what the labels of ``data`` say, besides; of classes it is known. ``judge``: scores
    for the lines of progress but the last, fewer of them where one takes long: ``judge_s``. The result itself is not
    scored. ``slot``: where it is kept what there is so far, at least once a minute. The same seed and the same number
    of steps give the same weights, also where a training goes on from ``slot``.
    """
    if (num_steps is None) == (budget is None):
        raise ValueError("give num_steps or budget, and not both")
    training = Training(student, teacher, loss, recipe, Reader(data, seed).some(FIRST_BATCHES))
    saved = slot.load() or {"schedule": {"steps_left": num_steps}, "place": {}}
    if "training" in saved:
        training.restore(saved["training"])
    clock = budget or Budget(None)
    schedule = Schedule(**saved["schedule"]).resumed(clock.used_s)
    reader, start = Reader(data, seed, **saved["place"]), (schedule.step, clock.used_s)
    scores = _Scores(judge, judge_s if budget else 0.0, clock)
    while not schedule.done:
        value = training.step(reader.next(), schedule, generator_of(seed, "step", schedule.step))
        before, schedule = schedule, schedule.after_step()
        if schedule.part > before.part:
            score = None if schedule.done else scores.of(training.average)
            say(_line(schedule, value, score, _left_s(schedule, start, clock.used_s)))
        if budget is not None and schedule.is_to_be_timed(before):
            schedule = schedule.timed(budget.used_s, budget.left_s)
        if slot.due:
            state = {"schedule": asdict(schedule), "place": reader.place, "training": training.state()}
            slot.save(state)
    return Trained(model=training.result(), num_steps=schedule.step)


class _Scores:
    """Of the network under training, as often as time allows."""

    def __init__(self, judge: Judge | None, judge_s: float, clock: Budget) -> None:
        self._judge, self._clock = judge, clock
        self._every_s, self._scored_s = judge_s / SCORING, clock.used_s

    def of(self, model: nn.Module) -> Score | None:
        if self._judge is None or self._clock.used_s - self._scored_s < self._every_s:
            return None
        score = self._judge(model)
        self._scored_s = self._clock.used_s
        return score


def _line(schedule: Schedule, loss: float, score: Score | None, left_s: float) -> str:
    """How the training is doing."""
    steps = f"step {schedule.step} of {schedule.step + (schedule.steps_left or 0)}, loss {loss:.4g}"
    return steps + ("" if score is None else f", score {score}") + f", {left_s:.0f} s left"


def _left_s(schedule: Schedule, start: tuple[int, float], used_s: float) -> float:
    """Seconds to go at the pace since ``start``, a step and the second in which it began."""
    each_s = (used_s - start[1]) / max(1, schedule.step - start[0])
    return each_s * (schedule.steps_left or 0)
