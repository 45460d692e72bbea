"""A session: requests in, the model's answers out, whatever happens to plans and workers meanwhile.

A session captures the model once per input shape, plans, proves the programs by a dry-run, deploys them and runs
requests. The first answer under every new plan is compared with the model's own; a plan that differs is never used
again. A request that loses its worker is answered by the model itself, here, where that is allowed.
"""

from __future__ import annotations

import itertools
import logging
import secrets
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from edgedi.errors import EdgediError, WorkerLost
from edgedi.partition.capture.capture import Capture, as_arguments
from edgedi.partition.cost.profile import ClusterProfile, Links
from edgedi.partition.plan.placement import Placement
from edgedi.partition.plan.plan import Plan
from edgedi.partition.plan.program import ProgramSet
from edgedi.runtime.coordinator.coordinator import Coordinator, Request, new_run
from edgedi.runtime.coordinator.dealer import Dealer
from edgedi.runtime.coordinator.deployment import Deployer, Deployment
from edgedi.runtime.execution.tensors import in_wire_order
from edgedi.runtime.execution.weights import weight_digest
from edgedi.runtime.links.keys import KeyPair, WorkerAddress
from edgedi.runtime.session.alone import seconds_alone
from edgedi.runtime.session.balance_state import EVERY_REQUESTS
from edgedi.runtime.session.plans_by_shape import PlansByShape
from edgedi.runtime.session.rebalance import Rebalancer, SessionPlans, busy_seconds_of
from edgedi.runtime.session.statistics import SessionStatistics, Tally, bytes_per_link, told_by_workers
from edgedi.runtime.session.trace import RequestTrace, Span, trace_json
from edgedi.runtime.session.tracing import Recording, trace_path
from edgedi.runtime.session.verify import Comparison, compare, first_difference
from edgedi.runtime.wire.messages import Close
from edgedi.runtime.worker.local_share import LocalShare
from edgedi.runtime.worker.local_workers import LocalWorkers

log = logging.getLogger("edgedi")
Progress = Callable[[str], None]
CPU = torch.device("cpu")


@dataclass(slots=True, kw_only=True)
class _Ticket:
    """One request as its caller sees it; the input stays until the answer is out."""

    inputs: tuple[Any, ...]
    started_s: float
    counted: bool = True
    """Whether it is the user's, and so in the statistics."""
    recording: Recording | None = None
    is_waited_for: bool = False
    """Whether the thread that asks does nothing else meanwhile, and so may compute."""
    dealer: Dealer | None = None
    deployment: Deployment | None = None
    is_over: bool = False
    device: torch.device = CPU
    """Where the answer is wanted: where the first tensor of the input lives."""
    future: Future[Any] = field(default_factory=Future)


class Session:
    """Made by ``distribute``. Thread-safe; use it as a context manager, or ``close`` it."""

    def __init__(
        self,
        model: nn.Module,
        addresses: Sequence[WorkerAddress],
        keypair: KeyPair | None,
        *,
        planner: str,
        objective: str,
        profile: ClusterProfile | None,
        links: Links | None,
        verify: str,
        allow_local: bool,
        max_in_flight: int,
        timeout_s: float,
        rebalance: bool,
        say: Progress,
        local: LocalWorkers | None,
        share: LocalShare | None,
    ) -> None:
        self._model, self._addresses = model, tuple(addresses)
        self._verify, self._allow_local, self._timeout_s = verify, allow_local, timeout_s
        self._local, self._share = local, share
        self._name = secrets.token_hex(8)
        self._max_in_flight = max_in_flight
        self._slots = threading.BoundedSemaphore(max_in_flight)
        self._tally = Tally()
        self._numbers = itertools.count()
        self._last_inputs: tuple[Any, ...] = ()
        self._closed = False
        self._helpers = ThreadPoolExecutor(1, thread_name_prefix="edgedi-verify")
        self._coordinator = Coordinator(self._addresses, keypair, share=share)
        self._deployer = Deployer(
            self._coordinator, self._addresses, self._name, planner, profile, links, say, share, objective,
            self._numbers,
        )  # fmt: skip
        unverified = verify == "never"
        self._plans = plans = PlansByShape(
            model, self._coordinator, self._deployer, self._name, len(self._addresses),
            verified=unverified, allow_local=allow_local,
        )  # fmt: skip
        allowed = SessionPlans(plans.in_use, self._try_out, plans.exchange, plans.free)
        self._rebalancer = (
            Rebalancer(self._coordinator, self._deployer, self._name, allowed, verified=unverified)
            if rebalance
            else None
        )

    # --- use -------------------------------------------------------------------------------------------------------

    def __call__(self, *inputs: Any) -> Any:
        """The model's answer to ``inputs``: same structure, element type and device."""
        future = self._submit(inputs, is_waited_for=True)
        self._last_inputs = inputs
        return future.result()

    def submit(self, *inputs: Any) -> Future[Any]:
        """Begin a request; waits, at most ``timeout_s``, while ``max_in_flight`` others are under way.

        Inputs are not copied: leave them as they are until the answer is there.
        """
        future = self._submit(inputs)
        self._last_inputs = inputs
        return future

    def _submit(
        self, inputs: tuple[Any, ...], recording: Recording | None = None, *, is_waited_for: bool = False
    ) -> Future[Any]:
        if self._closed:
            raise WorkerLost("the session is closed")
        started_s = self._coordinator.clock()
        if not self._slots.acquire(timeout=self._coordinator.waiting_s(self._timeout_s)):
            raise WorkerLost(f"no request of those in flight ended within {self._timeout_s} s")
        ticket = _Ticket(inputs=inputs, started_s=started_s, recording=recording, is_waited_for=is_waited_for)
        ticket.future.set_running_or_notify_cancel()
        try:
            self._start(self._deal(ticket), ticket)
        except BaseException:
            self._let_go(ticket)
            raise
        return ticket.future

    def stream(self, inputs: Iterable[Any]) -> Iterator[Any]:
        """Answers in order, several requests in flight. Items are the model's single argument, or a tuple of all."""
        waiting: deque[Future[Any]] = deque()
        for item in inputs:
            waiting.append(self.submit(*as_arguments(item)))
            while len(waiting) >= self._max_in_flight or (waiting and waiting[0].done()):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def spans(self, *inputs: Any) -> tuple[Span, ...]:
        """What each worker and the coordinator computed, sent and waited for in one more request, which this runs.

        Without ``inputs`` it is the latest request once more: a session keeps the inputs of its latest request. Times
        are seconds since that request began, by the coordinator's clock. It goes by messages, to be seen, also where
        this process would answer alone. A chain of layers that an engine computes is one span, by the name of its last.
        """
        return self._trace(inputs).spans

    def trace(self, path: str | Path, *inputs: Any) -> None:
        """Write ``spans`` to a JSON file that https://ui.perfetto.dev opens; how well clocks agree is in it too."""
        target = trace_path(path)
        target.write_text(trace_json(self._trace(inputs)), encoding="utf-8")

    @property
    def plan(self) -> Plan:
        """The plan of the latest input shape; of several replicas, that of the one which answers most requests."""
        return self._plans.latest().main.plan

    @property
    def placement(self) -> Placement:
        """The replicas of the latest input shape, each with its workers and plan; one of them for latency."""
        return self._plans.latest().placement

    @property
    def programs(self) -> ProgramSet:
        """What each participant runs under ``plan``, and the graph that they run."""
        return self._plans.latest().main.programs

    def layer_seconds(self) -> tuple[Mapping[str, float], ...]:
        """Measure the bound of ``plan``: per worker, what its share of each layer takes while nobody exchanges."""
        main = self._plans.latest().main
        return seconds_alone(self._coordinator, main.programs, main.capture.weights, main.links, weight_digest)

    @property
    def profile(self) -> ClusterProfile:
        """What the plan was made by: measured seconds of every layer of the model on each worker, and of the links."""
        main = self._plans.latest().main
        return self._deployer.cluster(main.capture, main.links)

    @property
    def links(self) -> Links:
        """What is known of the links: another session of these workers may be given it. Numbers are those of the
        workers as they were given, this process the first of them if it has a share; ``profile`` numbers the plan's."""
        return self._deployer.known_links

    @property
    def workers(self) -> tuple[str, ...]:
        """Names of the workers, in the plan's order at the start."""
        return tuple(welcome.name for welcome in self._deployer.welcomes)

    def statistics(self) -> SessionStatistics:
        """A snapshot; asks every worker that is still there."""
        names = self.workers
        told = told_by_workers(self._coordinator, self._name, names)
        in_use, last = self._plans.in_use(), self._plans.last
        predicted_busy_s, measured_busy_s = busy_seconds_of(
            in_use.deployments if in_use is not None else (), lambda link: f"{link}:{names[link]}", told
        )
        counts = self._tally.read()
        busy = {
            name: min(1.0, float(values["busy_s"]) / counts.total_s) if counts.total_s else 0.0
            for name, values in told.items()
        }
        return SessionStatistics(
            requests=counts.requests,
            local_answers=counts.local_answers,
            mean_s=counts.total_s / max(1, counts.requests),
            last_s=counts.last_s,
            predicted_s=last.placement.latency_s if last is not None and last.deployments else 0.0,
            bytes_per_link=bytes_per_link(self._coordinator, names),
            busy_share=busy,
            replans=self._rebalancer.num_replans if self._rebalancer is not None else 0,
            predicted_busy_s=predicted_busy_s,
            measured_busy_s=measured_busy_s,
            workers=told,
        )

    def close(self) -> None:
        """End the session: requests in flight end with ``WorkerLost``, local workers stop. Idempotent."""
        if self._closed:
            return
        self._closed = True
        if self._share is not None:
            self._share.stop()  # the last word below wakes it
        for index in range(len(self._addresses)):
            if self._coordinator.lost(index) is None:
                try:
                    self._coordinator.tell(index, Close(session=self._name))
                except EdgediError:
                    break
        self._coordinator.close()
        if self._rebalancer is not None:
            self._rebalancer.close()
        self._helpers.shutdown(wait=True)
        if self._share is not None:
            self._share.join()
        if self._local is not None:
            self._local.stop()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- plans -----------------------------------------------------------------------------------------------------

    def _prepare(self, first: Capture, args: tuple[Any, ...]) -> None:
        self._deployer.greet()
        self._plans.begin(first, args)

    def _deal(self, ticket: _Ticket) -> Deployment | None:
        """The replica that answers a request; ``None`` when only this process is left."""
        ticket.dealer, ticket.deployment = self._plans.deal(ticket.inputs)
        return ticket.deployment

    # --- balance -----------------------------------------------------------------------------------------------------

    def _try_out(self, deployment: Deployment) -> None:
        """The latest request once more, under a plan that is not in use yet; of another shape, the next one decides."""
        inputs = pytree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, self._last_inputs)
        if self._plans.capture_of(inputs) is not deployment.capture or not self._slots.acquire(
            timeout=self._coordinator.waiting_s(self._timeout_s)
        ):
            return
        ticket = _Ticket(inputs=inputs, started_s=self._coordinator.clock(), counted=False)
        try:
            self._start(deployment, ticket)
        except BaseException:
            self._slots.release()
            raise
        ticket.future.result()

    def _trace(self, inputs: tuple[Any, ...]) -> RequestTrace:
        chosen = inputs or self._last_inputs
        if not chosen:
            raise ValueError("there is no request to run again yet: call the session first, or give the inputs too")
        recording = Recording(self._coordinator, self._name, self.workers)
        self._submit(chosen, recording).result()
        return recording.trace()

    # --- requests ----------------------------------------------------------------------------------------------------

    def _start(self, deployment: Deployment | None, ticket: _Ticket) -> None:
        if deployment is None:
            self._helpers.submit(self._answer_locally, ticket)
            return
        given = deployment.capture.flatten(ticket.inputs)
        ticket.device = next(tensor.device for tensor in given.values())
        tensors = {name: in_wire_order(tensor) for name, tensor in given.items()}
        if ticket.is_waited_for and self._answer_here(deployment, ticket, tensors):
            return
        number = next(self._numbers)
        recording = ticket.recording
        run = new_run(deployment.home, tensors) if recording is None else recording.run(deployment, number, tensors)
        now_s = self._coordinator.clock()
        request = Request(
            session=self._name,
            epoch=deployment.epoch,
            number=number,
            run=run,
            outputs=deployment.capture.graph.outputs,
            links=deployment.links,
            deadline_s=now_s + self._timeout_s,
            started_s=now_s,
            done=lambda outputs, error: self._request_done(deployment, ticket, outputs, error),
        )
        self._coordinator.start_request(request)

    def _answer_here(self, deployment: Deployment, ticket: _Ticket, tensors: Mapping[str, Tensor]) -> bool:
        """Let this process's own share compute in the calling thread, where it needs nobody else; whether it has."""
        trusted = deployment.verified and self._verify != "always"
        if not (trusted and deployment.alone_here and self._share is not None):
            return False
        try:
            outputs = self._share.answer(self._name, deployment.epoch, tensors)
        except Exception as error:  # of an operator: the same request once more, as a message, says more of it
            log.warning("asking the share of this process by message: %s", error)
            return False
        if outputs is None:
            return False
        self._request_done(deployment, ticket, outputs, None)
        return True

    def _request_done(
        self,
        deployment: Deployment,
        ticket: _Ticket,
        outputs: Mapping[str, Tensor] | None,
        error: EdgediError | None,
    ) -> None:
        """In the coordinator's thread, where nothing is computed, or in that of a caller who waits."""
        if outputs is None:
            self._request_failed(ticket, error or WorkerLost("the request has no answer"))
            return
        answer = deployment.capture.unflatten({name: t.to(ticket.device) for name, t in outputs.items()})
        if deployment.verified and self._verify != "always":
            self._finish(ticket, answer=answer)
        else:
            self._helpers.submit(self._check, deployment, ticket, answer)

    def _request_failed(self, ticket: _Ticket, error: EdgediError) -> None:
        if isinstance(error, WorkerLost) and self._allow_local and not self._closed:
            log.warning("answering a request locally: %s", error)
            self._helpers.submit(self._answer_locally, ticket)
        else:
            self._finish(ticket, error=error)

    def _check(self, deployment: Deployment, ticket: _Ticket, answer: Any) -> None:
        """In the helper thread, one at a time: compare answers with the model's own until one has been found equal."""
        try:
            if deployment.verified and self._verify != "always":
                self._finish(ticket, answer=answer)
                return
            own = self._run_model(ticket)
            found = compare(answer, own)
            if found.equal and not deployment.refused:
                deployment.verified = True
                self._finish(ticket, answer=answer)
                return
            if not deployment.refused:
                self._refuse(deployment, ticket, found)
            self._finish(ticket, answer=own, local=True)
        except Exception as error:  # of the user's model, or ours: whoever waits must hear of it
            self._finish(ticket, error=error)

    def _refuse(self, deployment: Deployment, ticket: _Ticket, found: Comparison) -> None:
        deployment.refused = True
        log.error(
            "the distributed answer differs from the model's by %.3g of its largest value (allowed %.3g), first at "
            "layer %s; this plan is not used again, others or the session itself answer. Please report this plan:\n%s",
            found.difference,
            found.tolerance,
            first_difference(deployment.capture, deployment.programs, ticket.inputs),
            deployment.plan,
        )

    def _answer_locally(self, ticket: _Ticket) -> None:
        try:
            self._finish(ticket, answer=self._run_model(ticket), local=True)
        except Exception as error:  # of the user's model
            self._finish(ticket, error=error)

    def _run_model(self, ticket: _Ticket) -> Any:
        with torch.inference_mode():
            return self._model(*ticket.inputs)

    def _finish(
        self, ticket: _Ticket, *, answer: Any = None, error: BaseException | None = None, local: bool = False
    ) -> None:
        if ticket.counted:
            self._count(ticket, local)
        self._let_go(ticket)
        if error is not None:
            ticket.future.set_exception(error)
        else:
            ticket.future.set_result(answer)

    def _count(self, ticket: _Ticket, local: bool) -> None:
        counts = self._tally.add(self._coordinator.clock() - ticket.started_s, local=local)
        due = counts.requests % EVERY_REQUESTS == 0
        if due and self._rebalancer is not None and not self._closed:
            self._rebalancer.wake()

    def _let_go(self, ticket: _Ticket) -> None:
        """Make room for another request; once, although Ctrl-C may come after it."""
        if ticket.is_over:
            return
        ticket.is_over = True
        if ticket.dealer is not None and ticket.deployment is not None:
            ticket.dealer.give_back(ticket.deployment)
        self._slots.release()
