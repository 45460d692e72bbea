"""One traced request: tell the workers, compare clocks, run, gather what everybody noted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from edgedi.errors import WorkerLost
from edgedi.partition.plan.plan import HOME
from edgedi.runtime.coordinator.coordinator import Coordinator, answer_of
from edgedi.runtime.coordinator.deployment import Deployment
from edgedi.runtime.execution.executor import ProgramRun
from edgedi.runtime.execution.tensors import Tensor
from edgedi.runtime.session.trace import ClockOffset, RequestTrace, Span, clock_offset, instruction_segments, spans_of
from edgedi.runtime.wire.messages import AskTraced, Clock, Trace, Traced
from edgedi.runtime.worker.noting import Note, NotedRun

NUM_READINGS = 10
"""Round trips by which a worker's clock is compared with ours."""
TIMEOUT_S = 10.0


class Recording:
    """Everything noted of one request. ``run`` begins it, ``trace`` gathers it once the answer is there."""

    def __init__(
        self,
        coordinator: Coordinator,
        session: str,
        worker_names: Sequence[str],
    ) -> None:
        self._coordinator, self._session, self._worker_names = coordinator, session, worker_names
        self._clock = coordinator.clock
        self._deployment: Deployment | None = None
        self._number = 0
        self._run: ProgramRun | None = None
        self._notes: list[Note] = []
        self._offsets: dict[int, ClockOffset] = {}
        self._began_s = 0.0

    def run(self, deployment: Deployment, number: int, inputs: Mapping[str, Tensor]) -> ProgramRun:
        """The coordinator's own program; every worker has been told by the time it begins."""
        self._deployment, self._number = deployment, number
        message = Trace(session=self._session, epoch=deployment.epoch, request=number)
        self._offsets = {k: self._offset(link, message) for k, link in enumerate(deployment.links)}
        self._began_s = self._clock()
        self._run = NotedRun(deployment.home, inputs, notes=self._notes, clock=self._clock)
        return self._run

    def _offset(self, link: int, message: Trace) -> ClockOffset:
        readings = []
        for _ in range(NUM_READINGS):
            asked_s = self._clock()
            answer = answer_of(self._coordinator.ask(link, message, Clock), TIMEOUT_S, "comparing clocks")
            readings.append((asked_s, answer.now_s, self._clock()))
        return clock_offset(readings)

    def trace(self) -> RequestTrace:
        """Ask the workers. ``WorkerLost`` where one is lost, or where the request never ran on workers."""
        deployment = self._deployment
        if deployment is None or self._run is None or self._run.current_layer is not None:
            raise WorkerLost("the traced request was answered by the model here, not by workers: the log says why")
        message = AskTraced(session=self._session, epoch=deployment.epoch, request=self._number)
        asked = {k: self._coordinator.ask(link, message, Traced) for k, link in enumerate(deployment.links)}
        spans = self._spans(deployment, HOME, self._notes, self._began_s)
        for k, answer in asked.items():
            notes = answer_of(answer, TIMEOUT_S, "asking for a trace").notes
            spans += self._spans(deployment, k, notes, self._began_s + self._offsets[k].ahead_s)
        names = {k: f"{k}:{self._worker_names[link]}" for k, link in enumerate(deployment.links)}
        errors = {k: offset.error_s for k, offset in self._offsets.items()}
        return RequestTrace(spans=spans, names={HOME: "home"} | names, clock_error_s={HOME: 0.0} | errors)

    def _spans(
        self, deployment: Deployment, participant: int, notes: Sequence[Note], began_s: float
    ) -> tuple[Span, ...]:
        program = deployment.programs.programs[participant]
        segments = instruction_segments(program, deployment.capture.graph, deployment.plan)
        return spans_of(program, notes, segments, request=self._number, began_s=began_s)


def trace_path(path: str | Path) -> Path:
    """``path``, if a trace can be written there; ``ValueError`` before a request is spent on one that cannot."""
    wanted = Path(path).expanduser()
    if not wanted.parent.is_dir():
        raise ValueError(
            f"trace {str(path)!r}: there is no folder {str(wanted.parent)!r}; make it, or name another file"
        )
    if wanted.is_dir():
        raise ValueError(f"trace {str(path)!r} is a folder: name a file in it, such as {str(wanted / 'run.json')!r}")
    return wanted
