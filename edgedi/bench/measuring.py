"""One interleaved run: in every round each contender takes its turn, so that what disturbs the machine disturbs all.

The order rotates from round to round: nobody always runs after the same other one, with that one's leavings in the
caches.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from edgedi.bench.contenders import Contender
from edgedi.runtime.verify import compare


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One contender's part of a run: seconds of each round, and its answers against the model's own.

    ``difference`` is the largest difference of any answer, as a share of the largest value of the model's own answer.
    """

    name: str
    seconds: tuple[float, ...]
    difference: float
    within_tolerance: bool


def interleaved(
    contenders: Sequence[Contender], own_answers: Sequence[list[Tensor]], rounds: Iterable[int], *, repeat: int = 1
) -> list[Result]:
    """Run all ``contenders`` on the inputs whose ``own_answers``, the model's, are given; each round the next input.

    A turn is ``repeat`` requests and counts as their median. One request on each input comes before and is not counted.
    """
    for contender in contenders:
        for index in range(len(own_answers)):
            contender.seconds(index)
    seconds: list[list[float]] = [[] for _ in contenders]
    for number in rounds:
        index = number % len(own_answers)
        for place in range(len(contenders)):
            turn = (place + number) % len(contenders)
            times = [contenders[turn].seconds(index) for _ in range(repeat)]
            seconds[turn].append(statistics.median(times))
    return [_result(contender, taken, own_answers) for contender, taken in zip(contenders, seconds, strict=True)]


def _result(contender: Contender, seconds: Sequence[float], own_answers: Sequence[list[Tensor]]) -> Result:
    found = [compare(contender.answer(index), own) for index, own in enumerate(own_answers)]
    return Result(
        name=contender.name,
        seconds=tuple(seconds),
        difference=max(comparison.difference for comparison in found),
        within_tolerance=all(comparison.equal for comparison in found),
    )
