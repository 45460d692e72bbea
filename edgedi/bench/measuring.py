"""One interleaved run: in every round each contender takes its turn, so that what disturbs the machine disturbs all.

The order rotates from round to round: nobody always runs after the same other one, with that one's leavings in the
caches.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

from torch import Tensor

from edgedi.bench.contenders import Contender
from edgedi.bench.report import Result
from edgedi.errors import EdgediError
from edgedi.runtime.session.verify import compare


class EndedEarly(EdgediError):
    """A contender failed in the middle of a run: ``results`` hold the rounds that all had completed, at least one."""

    def __init__(self, reason: str, results: list[Result]) -> None:
        self.results = results
        super().__init__(reason)


def interleaved(
    contenders: Sequence[Contender], own_answers: Sequence[list[Tensor]], rounds: Iterable[int], *, repeat: int = 1
) -> list[Result]:
    """Run all ``contenders`` on the inputs whose ``own_answers``, the model's, are given; each round the next input.

    A turn is ``repeat`` requests and counts as their median. One request on each input comes before and is not counted.
    ``EndedEarly`` with what was measured where a contender fails after the first round.
    """
    for contender in contenders:
        for index in range(len(own_answers)):
            contender.seconds(index)
    seconds: list[list[float]] = [[] for _ in contenders]
    try:
        for number in rounds:
            _round(contenders, seconds, number, number % len(own_answers), repeat)
    except EdgediError as error:
        complete = min(map(len, seconds))
        if not complete:
            raise
        results = _results(contenders, [taken[:complete] for taken in seconds], own_answers)
        raise EndedEarly(f"after {complete} complete rounds: {error}", results) from error
    return _results(contenders, seconds, own_answers)


def _round(
    contenders: Sequence[Contender], seconds: Sequence[list[float]], number: int, index: int, repeat: int
) -> None:
    for place in range(len(contenders)):
        turn = (place + number) % len(contenders)
        times = [contenders[turn].seconds(index) for _ in range(repeat)]
        seconds[turn].append(statistics.median(times))


def _results(
    contenders: Sequence[Contender], seconds: Sequence[Sequence[float]], own_answers: Sequence[list[Tensor]]
) -> list[Result]:
    return [_result(contender, taken, own_answers) for contender, taken in zip(contenders, seconds, strict=True)]


def _result(contender: Contender, seconds: Sequence[float], own_answers: Sequence[list[Tensor]]) -> Result:
    found = [compare(contender.answer(index), own) for index, own in enumerate(own_answers)]
    return Result(
        name=contender.name,
        seconds=tuple(seconds),
        difference=max(comparison.difference for comparison in found),
        within_tolerance=all(comparison.equal for comparison in found),
    )
