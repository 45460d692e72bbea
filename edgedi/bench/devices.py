"""Who computes in a run: workers that run already, local processes, or the devices of a testbed."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from edgedi.bench.cores import as_first_of, deal, start_all_but_first, start_workers
from edgedi.bench.progress import Teller
from edgedi.bench.settings import Settings
from edgedi.bench.testbed.start import Testbed


@dataclass(frozen=True, slots=True, kw_only=True)
class Devices:
    """Where they are, and what of them is ours. ``distribute`` takes ``addresses``, ``key`` and ``share``."""

    addresses: tuple[str, ...]
    share: bool
    """Whether this process is one of them besides."""
    key: str | None = None
    pinned: bool = False
    """Whether each has cores of its own."""
    process_ids: tuple[int, ...] = ()
    """Whose processor time belongs to this run, where all of them are known; this process's own is not said."""
    clock: Callable[[], float] = time.perf_counter
    """Their time, by which requests are timed."""
    emulation: str = ""
    """What stands beside every figure where they are not real."""


def start_devices(settings: Settings, stack: ExitStack, teller: Teller) -> Devices:
    """Start what has to be started; ``stack`` ends it. This thread is on the first device if it has a share."""
    if settings.workers:
        return Devices(addresses=settings.workers, share=settings.share, key=settings.key)
    if settings.testbed is not None:
        teller.say(f"putting up testbed {settings.testbed.name}")
        testbed = Testbed(settings.testbed, teller.say)
        stack.callback(testbed.close)
        key = None if testbed.key is None else str(testbed.key)
        return Devices(
            addresses=testbed.addresses, share=True, key=key, process_ids=tuple(testbed.process_ids),
            clock=testbed.clock, emulation=str(testbed),
        )  # fmt: skip
    return _local(settings, stack, teller)


def _local(settings: Settings, stack: ExitStack, teller: Teller) -> Devices:
    count, threads, share = settings.num_local, settings.threads, settings.share
    pinned = all(deal(count, threads))
    teller.say(f"starting {count} local workers, threads of each: {threads}")
    start = start_all_but_first if share else start_workers
    local = start(count, threads) if count > share else None
    if share:
        stack.enter_context(as_first_of(count, threads))
    if local is None:
        return Devices(addresses=(), share=True, key=settings.key, pinned=pinned)
    stack.callback(local.stop)
    return Devices(
        addresses=tuple(local.addresses), share=share, key=settings.key, pinned=pinned,
        process_ids=tuple(local.process_ids),
    )  # fmt: skip
