"""``distribute``: a model and some workers become a ``Session`` that answers as the model does.

A session captures the model once per input shape, plans, proves the programs by a dry-run, deploys them and runs
requests. The first answer under every new plan is compared with the model's own; a plan that differs is never used
again. A request that loses its worker is answered by the model itself, here, where that is allowed.
"""

from __future__ import annotations

import logging
import secrets
import sys
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from edgedi.errors import EdgediError, GraphError, PlanError, WorkerLost
from edgedi.partition.capture import Capture, as_arguments, capture_model, check_model
from edgedi.partition.lowering import lower
from edgedi.partition.plan import HOME, Plan
from edgedi.partition.planners import plan as make_plan
from edgedi.partition.planners import planners
from edgedi.partition.profile import ClusterProfile
from edgedi.partition.program import ProgramSet
from edgedi.partition.simulate import simulate
from edgedi.runtime.coordinator import Coordinator, Request, new_run
from edgedi.runtime.executor import LoadedProgram
from edgedi.runtime.keys import WorkerAddress, load_keypair, load_known_workers, resolve_worker
from edgedi.runtime.kernels import fused
from edgedi.runtime.loading import Shipment
from edgedi.runtime.local_workers import LocalWorkers
from edgedi.runtime.messages import AskStatistics, Close, Hello, Refused, Statistics, Welcome
from edgedi.runtime.profiler import deploy_message, device_profiles, install, link_profile
from edgedi.runtime.reference import weights_of
from edgedi.runtime.security import is_loopback
from edgedi.runtime.verify import Comparison, compare, first_difference
from edgedi.runtime.version import software_version
from edgedi.runtime.weights import weight_digest
from edgedi.runtime.wire import WIRE_VERSION

log = logging.getLogger("edgedi")
HELLO_TIMEOUT_S = 5.0
MAX_SHAPES = 8
VERIFY = ("first", "always", "never")

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionStatistics:
    """A snapshot of a session. Times are wall-clock seconds as the caller of a request sees them."""

    requests: int
    local_answers: int
    mean_s: float
    last_s: float
    predicted_s: float
    bytes_per_link: Mapping[str, int]
    """Payload bytes sent over each link since the session began: ``home -> name`` and back."""
    busy_share: Mapping[str, float]
    """Part of the time that requests were in flight in which each worker computed or sent."""
    workers: Mapping[str, Mapping[str, Any]]
    """What each worker counts of itself, all sessions together."""


@dataclass(slots=True)
class _Deployment:
    """One plan, running: what was captured, planned and installed for one input shape."""

    capture: Capture
    plan: Plan
    programs: ProgramSet
    epoch: int
    home: LoadedProgram
    links: tuple[int, ...]
    verified: bool
    refused: bool = False
    held: list[Callable[[], None]] = field(default_factory=list)
    """Answers that wait until the first one has been compared."""
    comparing: bool = False


def distribute(
    model: nn.Module,
    example_inputs: Any,
    workers: int | Sequence[str],
    *,
    planner: str = "oodp",
    profile: ClusterProfile | str | Path | None = None,
    key: str | Path | None = None,
    verify: str = "first",
    allow_local: bool = True,
    max_in_flight: int = 4,
    timeout_s: float = 60.0,
    progress: Progress | bool | None = None,
) -> Session:
    """Run ``model`` on ``workers`` together.

    ``example_inputs`` is a tensor or a tuple of the model's arguments. ``workers`` is a number of local processes, or
    ``host:port`` (looked up among the known workers) or ``host:port#public-key`` of running ones. ``profile`` (a
    ``ClusterProfile`` or a JSON file) replaces measuring. ``verify`` is ``"first"``, ``"always"`` or ``"never"``.
    ``timeout_s`` bounds each request. ``progress`` is called with a line per step; by default a terminal shows them.

    Raises ``ValueError`` or ``TypeError`` for a wrong argument, ``GraphError`` for a model that does not export,
    ``WorkerLost`` for workers that do not answer or do not take their part, ``SecurityError`` for keys.
    """
    check_model(model)
    _check_options(planner, verify, max_in_flight, timeout_s)
    say = _progress(progress)
    local, addresses = _find_workers(workers, key)
    try:
        if local is not None:
            say(f"starting {workers} local workers")
        args = as_arguments(example_inputs)
        say("capturing the model")
        first = capture_model(model, args)
        if local is not None:
            addresses = tuple(resolve_worker(text, {}, need_key=False) for text in local.addresses)
        keypair = load_keypair(Path(key).expanduser()) if key is not None else None
        session = Session(
            model, addresses, keypair,
            planner=planner, profile=_read_profile(profile), verify=verify, allow_local=allow_local,
            max_in_flight=max_in_flight, timeout_s=timeout_s, say=say, local=local,
        )  # fmt: skip
    except BaseException:
        if local is not None:
            local.stop()
        raise
    try:
        session._prepare(first, args)
    except BaseException:
        session.close()
        raise
    return session


def _check_options(planner: str, verify: str, max_in_flight: int, timeout_s: float) -> None:
    if planner not in planners():
        raise ValueError(f"planner={planner!r}: accepted are {', '.join(planners())}")
    if verify not in VERIFY:
        raise ValueError(f"verify={verify!r}: accepted are {', '.join(VERIFY)}")
    if max_in_flight < 1:
        raise ValueError(f"max_in_flight={max_in_flight}: give at least 1")
    if not timeout_s > 0:
        raise ValueError(f"timeout_s={timeout_s}: give a positive number of seconds")


def _find_workers(workers: int | Sequence[str], key: Any) -> tuple[LocalWorkers | None, tuple[WorkerAddress, ...]]:
    if isinstance(workers, bool) or not isinstance(workers, (int, Sequence)) or isinstance(workers, str):
        raise TypeError(f"workers={workers!r}: give a number of local workers or a list of 'host:port'")
    if isinstance(workers, int):
        return LocalWorkers(workers), ()
    if not workers:
        raise ValueError("workers=[]: give at least one 'host:port', or a number of local workers")
    known = load_known_workers()
    addresses = tuple(resolve_worker(text, known, need_key=key is not None) for text in workers)
    seen: set[tuple[str, int]] = set()
    for text, address in zip(workers, addresses, strict=True):
        place = ("127.0.0.1" if is_loopback(address.host) else address.host, address.port)
        if place in seen:
            raise ValueError(f"workers name {text} twice: every worker is one process, once in the list")
        seen.add(place)
    return None, addresses


def _read_profile(profile: ClusterProfile | str | Path | None) -> ClusterProfile | None:
    if profile is None or isinstance(profile, ClusterProfile):
        return profile
    return ClusterProfile.from_json(Path(profile).read_text())


def _progress(progress: Progress | bool | None) -> Progress:
    if callable(progress):
        return progress
    shown = sys.stderr.isatty() if progress is None else progress
    return (lambda line: print(f"edgedi: {line}", file=sys.stderr, flush=True)) if shown else (lambda line: None)


class Session:
    """Made by ``distribute``. Thread-safe; use it as a context manager, or ``close`` it."""

    def __init__(
        self,
        model: nn.Module,
        addresses: Sequence[WorkerAddress],
        keypair: Any,
        *,
        planner: str,
        profile: ClusterProfile | None,
        verify: str,
        allow_local: bool,
        max_in_flight: int,
        timeout_s: float,
        say: Progress,
        local: LocalWorkers | None,
    ) -> None:
        self._model, self._addresses, self._planner, self._given_profile = model, tuple(addresses), planner, profile
        self._verify, self._allow_local, self._timeout_s, self._say = verify, allow_local, timeout_s, say
        self._local = local
        self._name = secrets.token_hex(8)
        self._slots = threading.BoundedSemaphore(max_in_flight)
        self._lock = threading.RLock()
        self._deployments: OrderedDict[Any, _Deployment] = OrderedDict()
        self._captures: OrderedDict[Any, Capture] = OrderedDict()
        self._shipment: dict[int, Shipment] = {}
        self._next_epoch = self._next_request = 0
        self._last_plan: Plan | None = None
        self._seconds: list[float] = []
        self._num_requests = self._num_local = 0
        self._total_s = self._last_s = 0.0
        self._closed = False
        self._helpers = ThreadPoolExecutor(1, thread_name_prefix="edgedi-verify")
        self._packer = fused.Packer() if fused.available() else None
        self._coordinator = Coordinator(self._addresses, keypair, on_lost=self._worker_lost)
        self._welcomes: list[Welcome] = []
        self._links_measured: Any = None

    # --- use -------------------------------------------------------------------------------------------------------

    def __call__(self, *inputs: Any) -> Any:
        """The model's answer to ``inputs``: same structure, element type and device."""
        return self.submit(*inputs).result()

    def submit(self, *inputs: Any) -> Future[Any]:
        """Begin a request; waits, at most ``timeout_s``, while ``max_in_flight`` others are under way."""
        if self._closed:
            raise WorkerLost("the session is closed")
        started_s = time.monotonic()
        deployment = self._deployment(inputs)
        if not self._slots.acquire(timeout=self._timeout_s):
            raise WorkerLost(f"no request of those in flight ended within {self._timeout_s} s")
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()
        try:
            self._start(deployment, inputs, future, started_s)
        except BaseException:
            self._slots.release()
            raise
        return future

    def stream(self, inputs: Iterable[Any]) -> Iterator[Any]:
        """Answers in order, with several requests in flight. Items are the model's single argument, or a tuple of them."""
        waiting: deque[Future[Any]] = deque()
        depth = self._slots._initial_value  # type: ignore[attr-defined]  # a semaphore does not tell otherwise
        for item in inputs:
            waiting.append(self.submit(*as_arguments(item)))
            while len(waiting) >= depth or (waiting and waiting[0].done()):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    @property
    def plan(self) -> Plan:
        """The plan of the latest input shape."""
        if self._last_plan is None:
            raise WorkerLost("no plan is deployed: every worker is lost")
        return self._last_plan

    @property
    def workers(self) -> tuple[str, ...]:
        """Names of the workers, in the plan's order at the start."""
        return tuple(welcome.name for welcome in self._welcomes)

    def statistics(self) -> SessionStatistics:
        """A snapshot; asks every worker that is still there."""
        counted: dict[str, Mapping[str, Any]] = {}
        for index, welcome in enumerate(self._welcomes):
            if self._coordinator.lost(index) is None:
                try:
                    answer = self._coordinator.ask(index, AskStatistics(session=self._name), Statistics)
                    counted[f"{index}:{welcome.name}"] = answer.result(HELLO_TIMEOUT_S).values
                except (EdgediError, TimeoutError):
                    continue
        traffic: dict[str, int] = {}
        for (sent, received), (index, welcome) in zip(
            self._coordinator.link_bytes(), enumerate(self._welcomes), strict=True
        ):
            traffic[f"home -> {index}:{welcome.name}"], traffic[f"{index}:{welcome.name} -> home"] = sent, received
        with self._lock:
            busy = {
                name: min(1.0, float(values["busy_s"]) / self._total_s) if self._total_s else 0.0
                for name, values in counted.items()
            }
            return SessionStatistics(
                requests=self._num_requests,
                local_answers=self._num_local,
                mean_s=self._total_s / max(1, self._num_requests),
                last_s=self._last_s,
                predicted_s=self._last_plan.predicted_s if self._last_plan else 0.0,
                bytes_per_link=traffic,
                busy_share=busy,
                workers=counted,
            )

    def close(self) -> None:
        """End the session: requests in flight end with ``WorkerLost``, local workers stop. Idempotent."""
        if self._closed:
            return
        self._closed = True
        for index in range(len(self._addresses)):
            if self._coordinator.lost(index) is None:
                try:
                    self._coordinator.tell(index, Close(session=self._name))
                except EdgediError:
                    break
        self._coordinator.close()
        self._helpers.shutdown(wait=True)
        if self._local is not None:
            self._local.stop()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- plans -----------------------------------------------------------------------------------------------------

    def _prepare(self, first: Capture, args: tuple[Any, ...]) -> None:
        self._greet()
        self._captures[_shape_key(args)] = first
        self._deployment(args)

    def _greet(self) -> None:
        hello = Hello(wire_version=WIRE_VERSION, software_version=software_version())
        asked = [self._coordinator.ask(index, hello, Welcome) for index in range(len(self._addresses))]
        for address, answer in zip(self._addresses, asked, strict=True):
            try:
                welcome = answer.result(HELLO_TIMEOUT_S)
            except TimeoutError:
                raise WorkerLost(
                    f"no answer from worker {address} within {HELLO_TIMEOUT_S:.0f} s: is edgedi-worker running there, "
                    "on that port, and reachable from here?",
                    worker=str(address),
                ) from None
            if welcome.wire_version != WIRE_VERSION or welcome.software_version != software_version():
                raise WorkerLost(
                    f"worker {address} runs edgedi {welcome.software_version} (wire {welcome.wire_version}), this is "
                    f"edgedi {software_version()} (wire {WIRE_VERSION}): install the same version on both",
                    worker=str(address),
                )
            self._welcomes.append(welcome)

    def _deployment(self, inputs: tuple[Any, ...]) -> _Deployment | None:
        """The running plan for inputs of these shapes, made if need be; ``None`` when only this process is left."""
        key = _shape_key(inputs)
        with self._lock:
            known = self._deployments.get(key)
            if known is not None:
                self._deployments.move_to_end(key)
                return None if known.refused else known
            alive = [i for i in range(len(self._addresses)) if self._coordinator.lost(i) is None]
            if not alive:
                return self._nobody()
            try:
                made = self._deploy(self._capture(inputs, key), alive)
            except WorkerLost:
                if not self._deployments and self._last_plan is None:
                    raise  # the very first plan: the user should hear of it
                return self._nobody()
            self._deployments[key] = made
            self._last_plan = made.plan
            while len(self._deployments) > MAX_SHAPES:
                self._deployments.popitem(last=False)
            return made

    def _nobody(self) -> None:
        if not self._allow_local:
            reasons = "; ".join(str(self._coordinator.lost(i)) for i in range(len(self._addresses)))
            raise WorkerLost(f"no worker is left and allow_local is False: {reasons}")

    def _capture(self, inputs: tuple[Any, ...], key: Any) -> Capture:
        known = self._captures.get(key)
        if known is None:
            started_s = time.monotonic()
            known = self._captures[key] = self._capture_new(inputs)
            log.info("captured new input shapes %s in %.1f s", key, time.monotonic() - started_s)
            while len(self._captures) > MAX_SHAPES:
                self._captures.popitem(last=False)
        return known

    def _capture_new(self, inputs: tuple[Any, ...]) -> Capture:
        try:
            return capture_model(self._model, inputs)
        except (GraphError, TypeError) as error:
            example = next(iter(self._captures.values()))
            wanted = ", ".join(map(str, example.graph.inputs.values()))
            raise ValueError(f"inputs {_describe(inputs)} do not fit the model, which was captured with {wanted}: {error}") from error

    def _deploy(self, capture: Capture, alive: Sequence[int]) -> _Deployment:
        cluster = self._cluster(capture, alive)
        self._say("planning")
        plan = make_plan(capture.graph, cluster, planner=self._planner)
        programs = lower(plan, capture.graph)
        simulate(programs)
        self._say(f"deploying {len(plan.segments)} segments")
        epoch, self._next_epoch = self._next_epoch, self._next_epoch + 1
        shipment = Shipment(capture.weights, weight_digest)
        deploys = {
            link: deploy_message(
                programs, shipment, self._name, epoch, participant, len(alive), self._peers(alive, participant)
            )
            for participant, link in enumerate(alive)
        }
        install(self._coordinator, deploys, shipment)
        home = LoadedProgram(
            programs.programs[HOME], capture.graph, weights_of(capture), opaque=capture.opaque, packer=self._packer
        )
        return _Deployment(
            capture=capture, plan=plan, programs=programs, epoch=epoch, home=home, links=tuple(alive),
            verified=self._verify == "never",
        )  # fmt: skip

    def _peers(self, alive: Sequence[int], me: int) -> tuple[dict[str, Any], ...]:
        mine = self._welcomes[alive[me]].machine
        return tuple(
            {"participant": p, "address": f"{_host(self._addresses[link])}:{self._addresses[link].port}",
             "public_key": self._addresses[link].public_key,
             "halo_address": self._welcomes[link].halo_address if mine == self._welcomes[link].machine else None}
            for p, link in enumerate(alive)
            if p != me
        )  # fmt: skip

    def _cluster(self, capture: Capture, alive: Sequence[int]) -> ClusterProfile:
        if self._given_profile is not None:
            if len(self._given_profile.devices) != len(self._addresses):
                raise ValueError(f"profile has {len(self._given_profile.devices)} devices for {len(self._addresses)} workers")
            return ClusterProfile(
                devices=tuple(self._given_profile.devices[link] for link in alive), link=self._given_profile.link
            )
        session = f"{self._name}-profile-{self._next_epoch}"
        welcomes = [self._welcomes[link] for link in alive]
        devices = device_profiles(_View(self._coordinator, alive), capture, welcomes, session, self._say)
        for link in alive:
            self._coordinator.tell(link, Close(session=session))
        if self._links_measured is None:
            self._links_measured = {link: link_profile(self._coordinator, link) for link in alive}
        measured = self._links_measured
        worst = max(measured.values(), key=lambda link: link.latency_s)
        links = {(HOME, p): measured[link] for p, link in enumerate(alive)}
        links |= {(p, HOME): measured[link] for p, link in enumerate(alive)}
        return ClusterProfile(devices=devices, link=worst, links=links)

    # --- requests ----------------------------------------------------------------------------------------------------

    def _start(
        self, deployment: _Deployment | None, inputs: tuple[Any, ...], future: Future[Any], started_s: float
    ) -> None:
        if deployment is None:
            self._helpers.submit(self._answer_locally, inputs, future, started_s)
            return
        tensors = {name: t.detach().cpu() for name, t in deployment.capture.flatten(inputs).items()}
        with self._lock:
            number, self._next_request = self._next_request, self._next_request + 1

        def done(outputs: Mapping[str, Tensor] | None, error: EdgediError | None) -> None:
            self._request_done(deployment, inputs, future, started_s, outputs, error)

        now_s = time.monotonic()
        with torch.inference_mode():
            run = new_run(deployment.home, tensors)
        self._coordinator.start_request(
            Request(
                session=self._name, epoch=deployment.epoch, number=number, run=run,
                outputs=deployment.capture.graph.outputs, links=deployment.links,
                deadline_s=now_s + self._timeout_s, started_s=now_s, done=done,
            )  # fmt: skip
        )

    def _request_done(
        self,
        deployment: _Deployment,
        inputs: tuple[Any, ...],
        future: Future[Any],
        started_s: float,
        outputs: Mapping[str, Tensor] | None,
        error: EdgediError | None,
    ) -> None:
        """In the coordinator's thread: never computes."""
        if error is not None:
            recoverable = isinstance(error, WorkerLost) and self._allow_local and not self._closed
            if recoverable:
                log.warning("answering request locally: %s", error)
                self._helpers.submit(self._answer_locally, inputs, future, started_s)
            else:
                self._finish(future, started_s, error=error)
            return
        assert outputs is not None
        answer = deployment.capture.unflatten({k: _as_users(v, inputs) for k, v in outputs.items()})
        if deployment.verified and self._verify != "always":
            self._finish(future, started_s, answer=answer)
            return
        self._helpers.submit(self._check, deployment, inputs, future, started_s, answer)

    def _check(
        self, deployment: _Deployment, inputs: tuple[Any, ...], future: Future[Any], started_s: float, answer: Any
    ) -> None:
        """In the helper thread, one at a time: compare the first answers with the model's own."""
        try:
            if deployment.verified and self._verify != "always":
                self._finish(future, started_s, answer=answer)
                return
            own = self._run_model(inputs)
            found = compare(answer, own)
            if found.equal and not deployment.refused:
                deployment.verified = True
                self._finish(future, started_s, answer=answer)
                return
            if not deployment.refused:
                self._refuse(deployment, inputs, found)
            self._finish(future, started_s, answer=own, local=True)
        except Exception as error:  # of the user's model, or ours: whoever waits must hear of it
            self._finish(future, started_s, error=error)

    def _refuse(self, deployment: _Deployment, inputs: tuple[Any, ...], found: Comparison) -> None:
        deployment.refused = True
        layer = first_difference(deployment.capture, deployment.programs, inputs)
        log.error(
            "the distributed answer differs from the model's by %.3g of its largest value (allowed %.3g), first at layer "
            "%s; this plan is not used again, the session answers locally. Please report this plan:\n%s",
            found.difference, found.tolerance, layer, deployment.plan,
        )  # fmt: skip

    def _answer_locally(self, inputs: tuple[Any, ...], future: Future[Any], started_s: float) -> None:
        try:
            self._finish(future, started_s, answer=self._run_model(inputs), local=True)
        except Exception as error:  # of the user's model
            self._finish(future, started_s, error=error)

    def _run_model(self, inputs: tuple[Any, ...]) -> Any:
        with torch.inference_mode():
            return self._model(*inputs)

    def _finish(
        self, future: Future[Any], started_s: float, *, answer: Any = None, error: BaseException | None = None, local: bool = False
    ) -> None:
        with self._lock:
            self._num_requests += 1
            self._num_local += local
            self._last_s = time.monotonic() - started_s
            self._total_s += self._last_s
        self._slots.release()
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(answer)

    def _worker_lost(self, index: int, error: EdgediError) -> None:
        """In the coordinator's thread: plans that use the worker go, the next request plans anew with those left."""
        with self._lock:
            gone = [key for key, d in self._deployments.items() if index in d.links]
            for key in gone:
                del self._deployments[key]


class _View:
    """Some of a coordinator's links, numbered from 0."""

    def __init__(self, coordinator: Coordinator, links: Sequence[int]) -> None:
        self._coordinator, self._links = coordinator, links

    def ask(self, worker: int, message: Any, *answers: type) -> Future[Any]:
        return self._coordinator.ask(self._links[worker], message, *answers)

    def tell(self, worker: int, message: Any) -> None:
        self._coordinator.tell(self._links[worker], message)


def _host(address: WorkerAddress) -> str:
    return f"[{address.host}]" if ":" in address.host else address.host


def _shape_key(inputs: tuple[Any, ...]) -> Any:
    """Structure, shapes and element types of the arguments; other leaves by value."""
    leaves, tree = pytree.tree_flatten(inputs)
    if not any(isinstance(leaf, Tensor) for leaf in leaves):
        raise TypeError(f"inputs {tuple(type(leaf).__name__ for leaf in leaves)} hold no tensor")
    return str(tree), tuple(
        (tuple(leaf.shape), leaf.dtype) if isinstance(leaf, Tensor) else repr(leaf) for leaf in leaves
    )


def _describe(inputs: tuple[Any, ...]) -> str:
    return ", ".join(
        f"{leaf.dtype}".removeprefix("torch.") + f"[{','.join(map(str, leaf.shape))}]" if isinstance(leaf, Tensor) else repr(leaf)
        for leaf in pytree.tree_leaves(inputs)
    )


def _as_users(tensor: Tensor, inputs: tuple[Any, ...]) -> Tensor:
    """The answer where the inputs live, in memory of its own and in torch's usual order of elements."""
    device = next(leaf.device for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor))
    return tensor.to(device)
