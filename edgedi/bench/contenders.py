"""Who takes part in a run: anything that answers the same inputs and can say how long it took."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch import Tensor
from torch.utils import _pytree as pytree

from edgedi.bench.report import Late, Memory, Traffic
from edgedi.errors import WorkerLost
from edgedi.runtime.session.session import Session
from edgedi.runtime.session.statistics import SessionStatistics


class Contender(Protocol):
    """One way to run the network on inputs that it holds already, named by number."""

    name: str

    def seconds(self, index: int) -> float:
        """Answer input ``index`` once; the seconds from the input being there to the answer being there."""
        ...

    def answer(self, index: int) -> list[Tensor]:
        """The tensors of the latest answer to input ``index``, as ``tensors_of`` lists them."""
        ...


def tensors_of(answer: Any) -> list[Tensor]:
    """The tensors of a model's answer, in the order of its structure."""
    return [leaf for leaf in pytree.tree_leaves(answer) if isinstance(leaf, Tensor)]


class SessionContender:
    """A session, timed where its user stands: input and answer on the host.

    On ``emulated`` devices it asks after each turn how late they were in it, which is not timed.
    """

    def __init__(
        self,
        name: str,
        session: Session,
        inputs: Sequence[tuple[Any, ...]],
        clock: Callable[[], float] = time.perf_counter,
        *,
        emulated: bool = False,
    ) -> None:
        self.name = name
        self.session = session
        self._emulated = emulated
        self._late: list[Late] = []
        self._clock = clock
        self._inputs = inputs
        self._answers: dict[int, Any] = {}
        self._num_workers = session.plan.num_workers

    def seconds(self, index: int) -> float:
        """See ``Contender``."""
        started_s = self._clock()
        answer = self.session(*self._inputs[index])
        taken_s = self._clock() - started_s
        self._require_all_workers()
        self._answers[index] = answer
        self._note_late(taken_s)
        return taken_s

    def answer(self, index: int) -> list[Tensor]:
        """See ``Contender``."""
        return tensors_of(self._answers[index])

    def require_workers_answered(self) -> SessionStatistics:
        """``WorkerLost`` if one has left, or this process answered in their place: the seconds are not theirs. What it
        was judged by, as asking a second time would not tell how late devices were."""
        statistics = self.session.statistics()
        known = [f"{index}:{name}" for index, name in enumerate(self.session.workers)]
        gone = [name for name in known if name not in statistics.workers]
        if gone:
            raise WorkerLost(f"{self.name}: of its workers {', '.join(known)} these have left: {', '.join(gone)}")
        if statistics.local_answers:
            raise WorkerLost(
                f"{self.name}: {statistics.local_answers} of {statistics.requests} requests were answered by this "
                "process instead of the workers; the lines above say why"
            )
        return statistics

    def _require_all_workers(self) -> None:
        """``WorkerLost`` if a worker that the plan had no use for is gone: these seconds are of another plan."""
        left = self.session.plan.num_workers
        if left != self._num_workers:
            raise WorkerLost(f"{self.name} was planned anew for {left} of {self._num_workers} workers: one has left")

    def take_late(self) -> list[Late]:
        """How late devices were in each turn since this was last called."""
        taken, self._late = self._late, []
        return taken

    def _note_late(self, taken_s: float, statistics: SessionStatistics | None = None) -> None:
        if self._emulated:
            told = (statistics or self.session.statistics()).workers.values()
            late_s = max((float(values["late_s"]) for values in told), default=0.0)
            self._late.append(Late(late_s=late_s, taken_s=taken_s))

    def memory(self) -> tuple[Memory, ...]:
        """The memory of every worker that is there, as the workers tell it."""
        return tuple(
            Memory(
                worker=name.partition(":")[2],
                peak_bytes=int(values["peak_memory_bytes"]),
                baseline_bytes=int(values["baseline_memory_bytes"]),
            )
            for name, values in self.session.statistics().workers.items()
        )

    def computed_by(self) -> tuple[str, ...]:
        """What computes the latest plan on every worker that is there, as the workers tell it."""
        return tuple(str(values["engine"]) for values in self.session.statistics().workers.values())

    def traffic(self) -> Traffic:
        """What one more request sends. Call it while nobody else uses the workers: they count all sessions together."""
        before = _sent(self.session)
        self.session(*self._inputs[0])
        after = _sent(self.session)
        from_home, to_home, by_workers = (new - old for new, old in zip(after, before, strict=True))
        return Traffic(home_bytes=from_home + to_home, between_workers_bytes=max(0, by_workers - to_home))


def require_nobody_left(open_already: Sequence[SessionContender]) -> None:
    """``WorkerLost`` at once, where another session would only say after seconds that nobody answers."""
    if open_already:
        open_already[-1].require_workers_answered()


def _sent(session: Session) -> tuple[int, int, int]:
    """Bytes so far: coordinator to workers, workers to coordinator, and all that workers sent to anybody."""
    statistics = session.statistics()
    links = statistics.bytes_per_link
    from_home = sum(count for link, count in links.items() if link.startswith("home -> "))
    to_home = sum(count for link, count in links.items() if link.endswith(" -> home"))
    return from_home, to_home, sum(int(values["sent_bytes"]) for values in statistics.workers.values())
