"""Runs that note when each instruction started and stopped: what a trace is made of.

A request that is not traced runs as if this module were not there: noting is another kind of run over a copy of the
program whose kernels look at the clock, and not a question that every step asks. On devices that compute behind
Python's back (CUDA, MPS) a kernel's seconds are those of starting it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from edgedi.partition.plan.program import Piece
from edgedi.runtime.execution.changed import Changed, Kernel
from edgedi.runtime.execution.executor import LoadedProgram, ProgramRun, SendPiece
from edgedi.runtime.execution.tensors import Tensor
from edgedi.runtime.worker.events import Epoch, Request

Note = tuple[int, float, float]
"""Number of an instruction, and when it started and stopped."""


class NotedRun(ProgramRun):
    """One request walking a loaded program; ``notes`` grows by one entry for each instruction that took time.

    A RECV is noted when its piece was missing, from then until it came; a piece that was there already cost nothing.
    """

    __slots__ = ("_clock", "_missing_since_s", "_notes")

    def __init__(
        self,
        loaded: LoadedProgram,
        inputs: Mapping[str, Tensor] | None = None,
        *,
        notes: list[Note],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock, self._notes = clock, notes
        self._missing_since_s: float | None = None
        super().__init__(Changed(loaded, self._noted), inputs)

    def _noted(self, number: int, kernel: Kernel) -> Kernel:
        def timed(*inputs: Tensor) -> Tensor:
            start_s = self._clock()
            made = kernel(*inputs)
            self._notes.append((number, start_s, self._clock()))
            return made

        return timed

    def deliver(self, piece: Piece, source: int, tensor: Tensor) -> None:
        super().deliver(piece, source, tensor)
        if self._missing_since_s is not None and self.can_advance:
            self._notes.append((self._position, self._missing_since_s, self._clock()))
            self._missing_since_s = None

    def advance(self, send: SendPiece) -> bool:
        def timed(piece: Piece, tensor: Tensor, target: int) -> None:
            start_s = self._clock()
            send(piece, tensor, target)
            self._notes.append((self._position, start_s, self._clock()))

        ended = super().advance(timed)
        if not ended and self._missing_since_s is None:
            self._missing_since_s = self._clock()
        return ended


class Notebook:
    """What a worker has noted: of each session the one request that is traced, by (session, epoch, number)."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._notes: dict[str, tuple[Request, list[Note]]] = {}

    def begin(self, request: Request) -> None:
        """Note this request of its session and no other; what is there of it already stays."""
        if request[0] not in self._notes or self._notes[request[0]][0] != request:
            self._notes[request[0]] = (request, [])

    def run(self, request: Request, program: LoadedProgram) -> ProgramRun:
        """A run of the request, which notes if it shall."""
        traced, notes = self._notes.get(request[0], (None, []))
        return NotedRun(program, notes=notes, clock=self._clock) if traced == request else ProgramRun(program)

    def take(self, session: str) -> list[Note]:
        """The notes of a session, which are then forgotten."""
        _, notes = self._notes.pop(session)
        return notes

    def forget(self, epoch: Epoch) -> None:
        """Drop the notes of a request of this epoch."""
        if epoch[0] in self._notes and self._notes[epoch[0]][0][:2] == epoch:
            del self._notes[epoch[0]]
