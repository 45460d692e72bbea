"""``distribute``, the front door: check what was given, find the workers, make a session."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgedi.errors import like
from edgedi.partition.capture.capture import as_arguments, capture_model, check_model
from edgedi.partition.cost.profile import ClusterProfile, Links, require_links
from edgedi.partition.planners.by_name import planners
from edgedi.partition.throughput.dealing import default_in_flight
from edgedi.partition.throughput.throughput import OBJECTIVES
from edgedi.runtime.links.keys import KeyPair, WorkerAddress, load_keypair, load_known_workers, resolve_worker
from edgedi.runtime.links.security import is_loopback
from edgedi.runtime.session.session import Progress, Session
from edgedi.runtime.worker.local_share import LocalShare
from edgedi.runtime.worker.local_workers import LocalWorkers, share_cores

VERIFY = ("first", "always", "never")


def distribute(
    model: nn.Module,
    example_inputs: Any,
    workers: int | Sequence[str],
    *,
    planner: str = "oodp",
    objective: str = "latency",
    profile: ClusterProfile | str | Path | None = None,
    links: Links | None = None,
    key: str | Path | None = None,
    verify: str = "first",
    allow_local: bool = True,
    max_in_flight: int | None = None,
    timeout_s: float = 60.0,
    rebalance: bool = True,
    progress: Progress | bool | None = None,
    local: bool = False,
) -> Session:
    """Run ``model`` on ``workers`` together.

    ``example_inputs`` is a tensor or a tuple of the model's arguments. ``workers`` is a number of local processes, or
    ``host:port`` (looked up among the known workers) or ``host:port#public-key`` of running ones. ``objective`` is
    ``"latency"``, the time of one request, or ``"throughput"``, requests a second with many in flight
    (``session.stream``): then workers may answer whole requests each, or stand in a pipeline. ``profile`` (a
    ``ClusterProfile`` or a JSON file) replaces measuring. ``links`` replaces measuring these links alone, as by another
    session's ``links``: ``(source, target)`` to ``LinkProfile``, workers by number, ``-1`` for this process.
    ``verify`` is ``"first"``, ``"always"`` or ``"never"``.
    ``max_in_flight`` requests are under way at most: 4 by default, for throughput 3 for each worker if that is more.
    ``rebalance`` plans anew, between requests, when devices change their speed (``balance_state`` says when).
    ``timeout_s`` bounds each request. ``progress`` is called with a line per step; by default a terminal shows them.
    ``local`` gives this process a share of its own, as worker 0: it holds the input already. Beside workers of other
    machines it listens for their halos, and wants a ``key`` then.

    Raises ``ValueError`` or ``TypeError`` for a wrong argument, ``GraphError`` for a model that does not export,
    ``WorkerLost`` for workers that do not answer or do not take their part, ``SecurityError`` for keys.
    """
    check_model(model)
    _check_options(planner, objective, verify, max_in_flight, timeout_s)
    say = _progress(progress)
    _check_local(local)
    keypair = load_keypair(Path(key).expanduser()) if key is not None else None
    started, addresses = _find_workers(workers, key, local)
    with contextlib.ExitStack() as undo:
        if started is not None:
            undo.callback(started.stop)
            say(f"starting {workers} local workers")
        args = as_arguments(example_inputs)
        say("capturing the model")
        first = capture_model(model, args)
        if started is not None:
            addresses = tuple(resolve_worker(text, {}, need_key=False) for text in started.addresses)
        share = _make_share(workers, addresses, keypair) if local else None
        if share is not None:
            undo.callback(share.join)
            undo.callback(share.stop)
            addresses = (share.address, *addresses)
        _check_links(links, profile, len(addresses))
        session = Session(
            model, addresses, keypair,
            planner=planner, objective=objective, profile=_read_profile(profile), links=links, verify=verify,
            allow_local=allow_local, max_in_flight=max_in_flight or default_in_flight(len(addresses), objective),
            timeout_s=timeout_s, rebalance=rebalance, say=say, local=started, share=share,
        )  # fmt: skip
        undo.pop_all()  # from here on they end with the session
        undo.callback(session.close)
        session._prepare(first, args)
        undo.pop_all()
    return session


def _check_options(planner: str, objective: str, verify: str, max_in_flight: int | None, timeout_s: float) -> None:
    if planner not in planners():
        raise ValueError(f"planner={planner!r}: accepted are {', '.join(planners())}{like(planner, planners())}")
    if objective not in OBJECTIVES:
        raise ValueError(f"objective={objective!r}: accepted are {', '.join(OBJECTIVES)}")
    if verify not in VERIFY:
        raise ValueError(f"verify={verify!r}: accepted are {', '.join(VERIFY)}")
    if max_in_flight is not None and max_in_flight < 1:
        raise ValueError(f"max_in_flight={max_in_flight}: give at least 1")
    if not timeout_s > 0:
        raise ValueError(f"timeout_s={timeout_s}: give a positive number of seconds")


def _check_local(local: bool) -> None:
    if not isinstance(local, bool):
        raise TypeError(f"local={local!r}: give True for a share of this process, or False")


def _check_links(links: Links | None, profile: object, num_workers: int) -> None:
    if links is None:
        return
    if profile is not None:
        raise ValueError("profile and links: a profile has links already, give one of the two")
    require_links(links, num_workers)


def _find_workers(
    workers: int | Sequence[str], key: Any, local: bool
) -> tuple[LocalWorkers | None, tuple[WorkerAddress, ...]]:
    if isinstance(workers, bool) or not isinstance(workers, (int, Sequence)) or isinstance(workers, str):
        raise TypeError(f"workers={workers!r}: give a number of local workers or a list of 'host:port'")
    if not workers and not local:
        raise ValueError(f"workers={workers}: give at least one 'host:port', at least 1 local worker, or local=True")
    if not workers:
        return None, ()
    if isinstance(workers, int):
        return LocalWorkers(workers, cores=share_cores(max(1, workers) + local)[local:]), ()
    known = load_known_workers()
    addresses = tuple(resolve_worker(text, known, need_key=key is not None) for text in workers)
    seen: set[tuple[str, int]] = set()
    for text, address in zip(workers, addresses, strict=True):
        place = ("127.0.0.1" if is_loopback(address.host) else address.host, address.port)
        if place in seen:
            raise ValueError(f"workers name {text} twice: every worker is one process, once in the list")
        seen.add(place)
    return None, addresses


def _make_share(
    workers: int | Sequence[str], addresses: Sequence[WorkerAddress], keypair: KeyPair | None
) -> LocalShare:
    """Beside local processes this one takes the first of the cores dealt; else it is as wide as torch is here."""
    if not isinstance(workers, int):
        return LocalShare(addresses, keypair, threads=torch.get_num_threads())
    cores = share_cores(workers + 1)[0]
    return LocalShare(addresses, None, threads=len(cores) or 1, cores=cores)  # our own processes take no keys


def _read_profile(profile: ClusterProfile | str | Path | None) -> ClusterProfile | None:
    if profile is None or isinstance(profile, ClusterProfile):
        return profile
    return ClusterProfile.from_json(Path(profile).read_text())


def _progress(progress: Progress | bool | None) -> Progress:
    if callable(progress):
        return progress
    shown = sys.stderr.isatty() if progress is None else progress
    return _show if shown else lambda line: None


def _show(line: str) -> None:
    sys.stderr.write(f"edgedi: {line}\n")
    sys.stderr.flush()
