"""A session's plans: for each shape of the input what was captured and who deals the requests, while workers are lost.

Those that are lost take their replicas along; where that leaves one without work, the shape is planned anew for those
that are left. The shapes used latest are kept.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from edgedi.errors import EdgediError, GraphError, PlanError, WorkerLost
from edgedi.partition.capture.capture import Capture, are_tensors, capture_model
from edgedi.runtime.coordinator.coordinator import Coordinator
from edgedi.runtime.coordinator.dealer import Dealer
from edgedi.runtime.coordinator.deployment import Deployer, Deployment

log = logging.getLogger("edgedi")
MAX_SHAPES = 8
"""Input shapes whose captures and plans are kept."""


class PlansByShape:
    """Thread-safe. ``verified`` says that plans need no comparison, ``allow_local`` that this process may answer."""

    def __init__(
        self,
        model: nn.Module,
        coordinator: Coordinator,
        deployer: Deployer,
        session: str,
        num_workers: int,
        *,
        verified: bool,
        allow_local: bool,
    ) -> None:
        self._model, self._coordinator, self._deployer = model, coordinator, deployer
        self._session, self._num_workers = session, num_workers
        self._verified, self._allow_local = verified, allow_local
        self._lock = threading.RLock()  # held while a plan is made, so never taken by the coordinator's thread
        self._dealers: OrderedDict[Any, Dealer] = OrderedDict()
        self._captures: OrderedDict[Any, Capture] = OrderedDict()
        self._too_small: set[tuple[Any, tuple[int, ...]]] = set()
        """Shapes and workers of which it is known that no plan fits into their memory."""
        self.last: Dealer | None = None
        """Whoever was made last."""

    # --- who deals ---------------------------------------------------------------------------------------------------

    def begin(self, first: Capture, inputs: tuple[Any, ...]) -> None:
        """Plan for inputs of these shapes, of which there is a capture already."""
        self._captures[_shape_key(inputs)] = first
        self._dealer(inputs)

    def deal(self, inputs: tuple[Any, ...]) -> tuple[Dealer | None, Deployment | None]:
        """The replica that answers a request, and who dealt it; ``None`` when only this process is left."""
        with self._lock:  # so that nobody drops a replica between the two lines
            dealer = self._dealer(inputs)
            return dealer, dealer.take() if dealer is not None else None

    def in_use(self) -> Dealer | None:
        """Who deals the latest requests; ``None`` when nobody does."""
        with self._lock:
            return next(reversed(self._dealers.values()), None)

    def latest(self) -> Dealer:
        """Whoever was made last. ``WorkerLost`` where nothing of it is left."""
        if self.last is None or not self.last.deployments:
            raise WorkerLost("no plan is deployed: every worker is lost")
        return self.last

    def exchange(self, old: Dealer, new: Dealer) -> bool:
        """Let ``new`` deal from now on and free ``old``; ``False``, and nothing done, where ``old`` does no more."""
        with self._lock:
            key = next((key for key, dealer in self._dealers.items() if dealer is old), None)
            if key is None:
                return False
            self._dealers[key] = new
            if self.last is old:
                self.last = new
        old.end(self.free)
        return True

    def free(self, deployment: Deployment) -> None:
        """Free a deployment on its workers once its requests have ended."""
        with contextlib.suppress(EdgediError):  # the session ends: so do its epochs
            self._coordinator.retire(self._session, deployment.epoch, deployment.links)

    def _dealer(self, inputs: tuple[Any, ...]) -> Dealer | None:
        """Who deals inputs of these shapes, made if need be; ``None`` when only this process is left."""
        key = _shape_key(inputs)
        with self._lock:
            alive = [i for i in range(self._num_workers) if self._coordinator.lost(i) is None]
            known = self._dealers.get(key)
            somebody_lost = len(alive) < self._num_workers
            if known is not None and somebody_lost and self._leaves_somebody_out(known, alive):
                del self._dealers[key]  # placed anew, on those that are left
                known = None
            if known is not None:
                self._dealers.move_to_end(key)
                return known if known.open else None
            made = self._deploy(inputs, key, alive) if alive else None
            if made is None:
                self._check_local_is_allowed()
                return None
            self._dealers[key] = self.last = made
            while len(self._dealers) > MAX_SHAPES:
                _, oldest = self._dealers.popitem(last=False)
                oldest.end(self.free)
            return made

    def _leaves_somebody_out(self, dealer: Dealer, alive: Sequence[int]) -> bool:
        """Drop replicas of lost workers; whether a worker that lives has no replica any more."""
        gone = dealer.drop(lambda link: link not in alive)
        for known in gone:
            self.free(known)
        served = {link for deployment in dealer.deployments for link in deployment.links}
        return not served or (bool(gone) and not served.issuperset(alive))

    def _deploy(self, inputs: tuple[Any, ...], key: Any, alive: Sequence[int]) -> Dealer | None:
        """A new plan for the workers alive; ``None`` if they are lost meanwhile or lack the memory.

        An error if it is the first plan.
        """
        if (key, tuple(alive)) in self._too_small:
            return None
        try:
            return Dealer(self._deployer.deploy(self._capture(inputs, key), alive, verified=self._verified))
        except WorkerLost:
            if self.last is None:
                raise
            return None
        except PlanError:
            if self.last is None or not self._allow_local:
                raise
            self._too_small.add((key, tuple(alive)))  # not planned again with every request
            return None

    def _check_local_is_allowed(self) -> None:
        if not self._allow_local:
            reasons = "; ".join(str(self._coordinator.lost(i)) for i in range(self._num_workers))
            raise WorkerLost(f"no worker is left and allow_local is False: {reasons}")

    # --- captures ----------------------------------------------------------------------------------------------------

    def capture_of(self, inputs: tuple[Any, ...]) -> Capture | None:
        """What was captured for inputs of these shapes."""
        with self._lock:
            return self._captures.get(_shape_key(inputs))

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
            raise ValueError(
                f"inputs {_describe(inputs)} do not fit the model, which was captured with {wanted}: {error}"
            ) from error


def _shape_key(inputs: tuple[Any, ...]) -> Any:
    """Structure, shapes and element types of the arguments; other leaves by value."""
    if inputs and are_tensors(inputs):
        return tuple((each.shape, each.dtype) for each in inputs)
    leaves, tree = pytree.tree_flatten(inputs)
    if not any(isinstance(leaf, Tensor) for leaf in leaves):
        raise TypeError(f"inputs {tuple(type(leaf).__name__ for leaf in leaves)} hold no tensor")
    return str(tree), tuple(
        (tuple(leaf.shape), leaf.dtype) if isinstance(leaf, Tensor) else repr(leaf) for leaf in leaves
    )


def _describe(inputs: tuple[Any, ...]) -> str:
    return ", ".join(
        f"{str(leaf.dtype).removeprefix('torch.')}[{','.join(map(str, leaf.shape))}]"
        if isinstance(leaf, Tensor)
        else repr(leaf)
        for leaf in pytree.tree_leaves(inputs)
    )
