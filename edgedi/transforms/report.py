"""What compaction did: per step and per layer, what the network was and what it is. Prints as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgedi.transforms.score import Score
from edgedi.transforms.size import LayerSize, Size, Target
from edgedi.transforms.task import Point

MOST_TOLD = 5
"""Layers left alone that a line names, and networks on the way that an error lists besides the first and the last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerChange:
    """A layer before and after; ``after`` is ``None`` where it is no longer needed."""

    before: LayerSize
    after: LayerSize | None

    @property
    def changed(self) -> bool:
        return self.before != self.after


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step, the whole network before and after it."""

    name: str
    before: Size
    after: Size
    difference: float
    """Largest difference to the original's output on the example inputs, relative to its largest value."""
    seconds: float = 0.0
    """Of all runs, where one was killed and taken up again."""
    training_steps: int = 0
    """That the network comes from; trainings of networks that were not taken do not count."""
    score: Score | None = None
    """After the step; ``None`` where there is no data to tell."""
    note: str = ""
    """Why more was left alone than had to be; "" where that is not so."""
    left_alone: tuple[str, ...] = ()
    """Layers whose channels stay, each with the reason in brackets."""

    @property
    def told(self) -> str:
        """The note and the first layers left alone, for a line; "" where there is nothing to say."""
        some, more = ", ".join(self.left_alone[:MOST_TOLD]), len(self.left_alone) - MOST_TOLD
        alone = f"left alone: {some}{f' and {more} more' if more > 0 else ''}" if some else ""
        return "; ".join(filter(None, (self.note, alone)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Compaction:
    """The report of one ``compact``, on the network that it returned as ``compaction``."""

    steps: tuple[Step, ...]
    layers: tuple[LayerChange, ...]
    score: Score | None = None
    """Of the original."""
    curve: tuple[Point, ...] = ()
    """Networks on the way, the original first; empty where there is no data to tell."""

    @property
    def training_steps(self) -> int:
        """Of all trainings that the network returned comes from."""
        return sum(step.training_steps for step in self.steps)

    @property
    def difference(self) -> float:
        """Of the network returned, as ``Step.difference``."""
        return self.steps[-1].difference if self.steps else 0.0

    def __str__(self) -> str:
        """Steps, then the layers that changed, then what else there is to say."""
        steps = [
            (step.name, "", *_columns(step.before, step.after), self._found(step), _effort(step)) for step in self.steps
        ]
        changed = [layer for layer in self.layers if layer.changed]
        layers = [
            (
                layer.before.name,
                _widths(layer),
                *_columns(layer.before.size, layer.after.size if layer.after else Size()),
                "" if layer.after else "gone",
                "",
            )
            for layer in changed
        ]
        header = ("step or layer", "width", "parameters", "MACs", "bytes", "score" if self.score else "", "")
        notes = [f"{step.name}: {step.told}" for step in self.steps if step.told]
        unchanged = f"layers as they were: {len(self.layers) - len(changed)}"
        return "\n".join([_table([header, *steps, *layers]), unchanged, *notes])

    def _found(self, step: Step) -> str:
        """What the answers are like: their score, or how far they are from the original's."""
        if step.score is None or self.score is None:
            return f"difference {step.difference:.1e}"
        return f"{self.score} -> {step.score}"


def _effort(step: Step) -> str:
    trained = f", {step.training_steps:,} training steps" if step.training_steps else ""
    return f"{step.seconds:.1f} s{trained}"


def missed(report: Compaction, target: Target) -> str:
    """What is said where the steps came to more than ``target``."""
    steps, against = ", ".join(step.name for step in report.steps), target.against(report.steps[-1].after)
    points = sorted({point.macs: point.score for point in report.curve}.items(), reverse=True)
    scores = ", ".join(f"{macs:,} MACs score {score:.4g}" for macs, score in _spread(points, MOST_TOLD + 2))
    notes = [f"{step.name}: {step.told}" for step in report.steps if step.told]
    most = " and ".join(f"{most:,} {unit}" for _, most, unit in against)
    came = f"target is {most}, and {steps} came to {' and '.join(f'{now:,}' for now, _, _ in against)}"
    return "; ".join([came, scores or "nothing says what that scores", *notes])


def _spread(points: Sequence[tuple[int, float]], most: int) -> list[tuple[int, float]]:
    """The first, the last, and so many between that they are ``most`` at the most."""
    count = min(most, len(points))
    return [points[i * (len(points) - 1) // max(1, count - 1)] for i in range(count)]


def changes(before: Sequence[LayerSize], after: Sequence[LayerSize]) -> tuple[LayerChange, ...]:
    """The layers of ``before``, each with what has its name in ``after`` and is of its kind, or stands in its place."""
    kept: Mapping[tuple[str, str], LayerSize] = {(layer.name, layer.kind): layer for layer in after}
    return tuple(
        LayerChange(before=layer, after=kept.get((layer.name, layer.kind)) or _stand_in(layer, before, after))
        for layer in before
    )


def _stand_in(layer: LayerSize, before: Sequence[LayerSize], after: Sequence[LayerSize]) -> LayerSize | None:
    """The parts of what ``layer`` was replaced by, as one; ``None`` where it was not."""
    inside = layer.name + "."
    parts = [part for part in after if part.name.startswith(inside)]
    if not parts or any(part.name.startswith(inside) for part in before):
        return None
    size = Size(
        parameters=sum(part.size.parameters for part in parts),
        macs=sum(part.size.macs for part in parts),
        num_bytes=sum(part.size.num_bytes for part in parts),
    )
    return LayerSize(name=layer.name, kind=" + ".join(part.kind for part in parts), width=layer.width, size=size)


def _widths(layer: LayerChange) -> str:
    before = layer.before.width
    return before if layer.after is None or layer.after.width == before else f"{before}: {layer.after.width}"


def _columns(before: Size, after: Size) -> tuple[str, str, str]:
    pairs = ((before.parameters, after.parameters), (before.macs, after.macs), (before.num_bytes, after.num_bytes))
    return tuple(f"{a:,} -> {b:,}" if a != b else f"{a:,}" for a, b in pairs)  # type: ignore[return-value]


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
