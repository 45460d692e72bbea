"""Steps of ``compact`` that are done, as plain values for a checkpoint and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from edgedi.transforms.edits import plain_of, redo, value_of
from edgedi.transforms.report import Step
from edgedi.transforms.score import Score
from edgedi.transforms.size import Size
from edgedi.transforms.store import Slot
from edgedi.transforms.task import Edit, Point


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A step that is done: what it did to the structure, the weights after it, and what is told of it."""

    step: Step
    edits: Sequence[Edit]
    weights: Mapping[str, Tensor]
    curve: Sequence[Point] = ()

    def again(self, model: nn.Module, arguments: tuple[Any, ...]) -> nn.Module:
        """What the step made of ``model``, which may be changed in place."""
        return redo(model, arguments, self.edits, self.weights)


def save(slot: Slot, finished: Sequence[Finished]) -> None:
    """Keep these steps."""
    slot.save({"finished": [_plain(one) for one in finished]})


def load(slot: Slot) -> list[Finished]:
    """The steps that were kept; none where nothing was."""
    state = slot.load() or {"finished": []}
    return [_finished(one) for one in state["finished"]]


def _plain(finished: Finished) -> dict[str, Any]:
    return {
        "step": dataclasses.asdict(finished.step),
        "edits": plain_of(tuple(finished.edits)),
        "weights": dict(finished.weights),
        "curve": [dataclasses.asdict(point) for point in finished.curve],
    }


def _finished(plain: Mapping[str, Any]) -> Finished:
    step, score = plain["step"], plain["step"]["score"]
    sizes = {when: Size(**step[when]) for when in ("before", "after")}
    return Finished(
        step=Step(**{**step, **sizes, "score": None if score is None else Score(**score)}),
        edits=value_of(plain["edits"]),
        weights=plain["weights"],
        curve=tuple(Point(**point) for point in plain["curve"]),
    )
