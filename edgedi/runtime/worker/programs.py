"""The programs that a worker has installed: their weights, the engine that computes them, and how much they were used.

Nothing is sent from here: what a coordinator is to hear is returned or raised.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from edgedi.errors import EdgediError, RemoteProtocolError, SecurityError
from edgedi.runtime.emulation.turns import one_at_a_time
from edgedi.runtime.execution.allocator import release_freed_memory
from edgedi.runtime.execution.executor import LoadedProgram
from edgedi.runtime.execution.groups import EngineGroups
from edgedi.runtime.execution.loading import (
    ENGINE_COPIES,
    Expected,
    WorkerMemoryError,
    expected_pieces,
    load,
)
from edgedi.runtime.execution.measure import adding_up_to, measure_described
from edgedi.runtime.execution.rehearsal import PricedProgram, computes, price_of
from edgedi.runtime.execution.tensors import from_wire
from edgedi.runtime.execution.weights import WeightStore
from edgedi.runtime.kernels import fused
from edgedi.runtime.kernels.engines import installed_engines
from edgedi.runtime.kernels.group import Engine
from edgedi.runtime.kernels.trials import Trials
from edgedi.runtime.links.keys import parse_worker_address
from edgedi.runtime.links.peers import PeerLinks
from edgedi.runtime.wire.messages import Deploy, Measure, Measured, Weights, busy_s_of, requests_of
from edgedi.runtime.worker.events import Epoch
from edgedi.runtime.worker.options import WorkerOptions


@dataclass(slots=True)
class Installed:
    """A program that requests can run."""

    deploy: Deploy
    program: LoadedProgram
    expected: Expected
    engine: str
    engine_bytes: int
    """Of weights that an engine holds again."""
    requests: int = 0
    busy_s: float = 0.0
    """Spent on the requests counted in ``requests``: computing and sending, not waiting."""
    links: PeerLinks | None = None
    """Made by the first request: only then have all workers of the session let each other in."""

    def count(self, busy_s: float) -> None:
        """One more request is over."""
        self.requests += 1
        self.busy_s += busy_s


@functools.cache
def _trials_by(clock: Callable[[], float]) -> Trials:
    """Of this process, which is one device: its share in the next session knows what it found in the last."""
    return Trials(clock)


class WorkerPrograms:
    """By epoch; weights are kept once for all of them."""

    def __init__(self, options: WorkerOptions, charge: Callable[[float], None] = lambda cpu_s: None) -> None:
        """``charge`` is told what every instruction counts, where that is not what it takes here."""
        self._options, self._charge = options, charge
        self._trials = _trials_by(self._choosing_clock())
        self._packer = fused.Packer(self._trials) if fused.available() and options.device == "cpu" else None
        self._store = WeightStore(options.memory_limit_bytes, device=options.device, packer=self._packer)
        self._pinned: dict[Epoch, tuple[str, ...]] = {}
        self._installed: dict[Epoch, Installed] = {}

    def __getitem__(self, epoch: Epoch) -> Installed:
        return self._installed[epoch]

    def get(self, epoch: Epoch) -> Installed | None:
        """``None`` where it is not installed, or no more."""
        return self._installed.get(epoch)

    # --- weights, programs -------------------------------------------------------------------------------------------

    def missing(self, digests: Iterable[str]) -> tuple[str, ...]:
        """The weights that are not here."""
        return self._store.missing(digests)

    def keep(self, weights: Weights) -> None:
        """``ValueError`` if they are not what their name says, ``RuntimeError`` if there is no room on the device."""
        layout = "nhwc" if len(weights.shape) == 4 else "nchw"
        self._store.add(weights.digest, from_wire(weights.payload, weights.dtype, weights.shape, layout, own=True))

    def expect(self, deploy: Deploy) -> None:
        """Pin what is here of the weights of a program that is to come."""
        digests = tuple(weight["digest"] for weight in deploy.weights)
        self._pinned[deploy.session, deploy.epoch] = digests
        self._store.use(digests)

    def install(self, deploy: Deploy) -> int:
        """Load a program whose weights are all here; the bytes of them. ``EdgediError`` where that is not possible."""
        epoch = (deploy.session, deploy.epoch)
        groups = self._groups()
        try:
            self._check_peers(deploy)
            program = self._loaded(deploy, groups)
        except EdgediError:
            self._store.settle(())
            raise
        expected = expected_pieces(program.program, program.graph)
        engine = self._computed_by(groups)
        self._store.settle(self._pinned[epoch])
        self._store.trim()
        release_freed_memory()
        weight_bytes = self._store.bytes_of(self._pinned[epoch])
        engine_bytes = ENGINE_COPIES * weight_bytes if groups is not None and groups.takes_any else 0
        self._installed[epoch] = Installed(deploy, program, expected, engine, engine_bytes)
        return weight_bytes

    def _loaded(self, deploy: Deploy, groups: EngineGroups | None) -> LoadedProgram:
        """Ready to run. Rather than that it is refused for memory that is held for speed alone, all give that back."""
        held_bytes = sum(installed.engine_bytes for installed in self._installed.values())
        held_bytes += self._packer.points_bytes if self._packer is not None else 0
        try:
            return self._load(deploy, groups, held_bytes)
        except WorkerMemoryError:
            if not held_bytes:
                raise
        program = self._load(deploy, None, 0, lean=True)
        for installed in self._installed.values():
            installed.program = self._load(installed.deploy, None, 0, lean=True)
            installed.engine, installed.engine_bytes = "torch", 0
        return program

    def _load(
        self, deploy: Deploy, groups: EngineGroups | None, held_bytes: int, *, lean: bool = False
    ) -> LoadedProgram:
        options = self._options
        with self._turn():
            loaded = load(
                deploy.program, deploy.layers, self._store, self._packer, limit_bytes=options.memory_limit_bytes,
                device=options.device, engines=groups, held_bytes=held_bytes, lean=lean,
            )  # fmt: skip
            if not (options.speed.counts_warm and computes(loaded)):
                return loaded
            return self._rehearsed(deploy, loaded, self._computed_by(groups))

    def _computed_by(self, groups: EngineGroups | None) -> str:
        """What computes the program that loaded last, in words."""
        by_winograd = set(self._packer.by_winograd) if self._packer is not None else set()
        by_winograd -= groups.layers if groups is not None else set()
        layers = f"winograd for {len(by_winograd)} layer{'s' * (len(by_winograd) > 1)}"
        return "; ".join(["torch", *[layers] * bool(by_winograd), *(groups.words if groups is not None else ())])

    def _turn(self) -> contextlib.AbstractContextManager[None]:
        """Where engines are chosen and layers timed: emulated devices that count warm do so one after another."""
        return one_at_a_time() if self._options.speed.counts_warm else contextlib.nullcontext()

    def _rehearsed(self, deploy: Deploy, loaded: LoadedProgram, computed_by: str) -> PricedProgram:
        """For an emulated device: charged for every instruction."""
        try:
            return PricedProgram(loaded, price_of(deploy.program, deploy.layers, computed_by), self._charge)
        except Exception as error:  # whatever an operator raises over noise
            raise RemoteProtocolError(f"the program does not run: {type(error).__name__}: {error}") from error

    def _priced(self, message: Deploy | Measure) -> PricedProgram | None:
        """An installed program that is the same as this one, where devices are charged by rehearsals."""
        same = (
            installed.program
            for installed in self._installed.values()
            if (installed.deploy.program, installed.deploy.layers) == (message.program, message.layers)
        )
        return next((program for program in same if isinstance(program, PricedProgram)), None)

    def _check_peers(self, deploy: Deploy) -> None:
        """Links between workers are as this worker's own: all with keys, or all open."""
        for peer in deploy.peers:
            try:
                parse_worker_address(peer["address"])
            except ValueError as error:
                raise RemoteProtocolError(f"a peer has no address: {error}") from error
            if peer["public_key"] is not None and self._options.keypair is None:
                raise SecurityError("the session's links need keys, and this worker has none: start it with --key")
            if peer["public_key"] is None and self._options.keypair is not None:
                raise SecurityError(f"no public key is given for peer {peer['address']}, and this worker wants one")

    def uninstall(self, epoch: Epoch) -> None:
        """Undo ``expect`` and, where it came to that, ``install``."""
        installed = self._installed.pop(epoch, None)
        if installed is not None and installed.links is not None:
            installed.links.close()
        self._store.release(self._pinned.pop(epoch, ()))

    def close(self) -> None:
        """Close the links of all programs."""
        for installed in self._installed.values():
            if installed.links is not None:
                installed.links.close()
        self._installed.clear()

    # --- what computes, and how much it did --------------------------------------------------------------------------

    @property
    def engine_name(self) -> str:
        """The engines that programs are computed by, for the device's fingerprint."""
        return "-".join(["torch", *["winograd"] * (self._packer is not None), *map(str, self._engines())])

    def _engines(self) -> tuple[Engine, ...]:
        """What may compute chains of layers. Where memory is limited, each program by itself has room for so many."""
        options = self._options
        if options.engine != "auto" or options.device != "cpu" or (options.speed.is_emulated and options.threads > 1):
            return ()
        return installed_engines()

    def _groups(self) -> EngineGroups | None:
        """Chains of layers for an engine, ``None`` where there is none."""
        engines = self._engines()
        return EngineGroups(engines, self._options.threads, self._choosing_clock()) if engines else None

    def _choosing_clock(self) -> Callable[[], float]:
        """What kernels and engines are timed by: where one thread computes for an emulated device, its own time."""
        options = self._options
        return time.thread_time if options.speed.is_emulated and options.threads == 1 else time.perf_counter

    def measure(self, message: Measure, clock: Callable[[], float]) -> Measured:
        """Time a program on noise; nothing of it stays. Whatever an operator raises over a stranger's description."""
        with self._turn():
            seconds, engine_factor = measure_described(
                message.program,
                message.layers,
                message.weights,
                message.repeats,
                trials=self._trials if self._packer is not None else None,
                limit_bytes=self._options.memory_limit_bytes,
                device=self._options.device,
                groups=self._groups(),
                clock=clock,
                calm=self._options.speed.counts_warm,
            )
            if (priced := self._priced(message)) is not None:  # its requests are held against this
                seconds = adding_up_to(self._options.speed.slowdown * priced.told_s(), seconds)
        release_freed_memory()
        return Measured(seconds=seconds, engine_factor=engine_factor)

    def statistics(self, session: str) -> dict[str, int | float | str]:
        """Of the programs of one session, and of the weights of all."""
        mine = [installed for (name, _), installed in self._installed.items() if name == session]
        latest = max(mine, key=lambda installed: installed.deploy.epoch, default=None)
        values: dict[str, int | float | str] = {
            "weight_bytes": self._store.num_bytes,
            "engine": latest.engine if latest is not None else "",
        }
        for installed in mine:
            epoch = installed.deploy.epoch
            values |= {requests_of(epoch): installed.requests, busy_s_of(epoch): installed.busy_s}
        return values
