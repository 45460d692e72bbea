"""Which rounds others disturbed: processor time that the hypervisor took, or that programs not of this run used; and
emulated devices that this machine let fall behind their own time.

Marked, never dropped: whoever reads the times decides what to think of them. From the counters of Linux; elsewhere, and
where workers are on other machines, no round is marked for it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edgedi.bench.report import MOST_FOREIGN_SHARE, Disturbance

MOST_STEAL_SHARE = 0.02
"""Of all processor time of a round: above it, or ``MOST_FOREIGN_SHARE``, it is marked."""
LOOK_S = 1.0
MOST_LATE_SHARE = 0.02
"""Of what a request took: a round in which a device was later is marked."""
_LEAST_S = 0.03
"""The counters tick every 10 ms: less than three ticks say nothing."""
_TICKS_PER_S = float(os.sysconf("SC_CLK_TCK")) if hasattr(os, "sysconf") else 100.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """Seconds counted up to now: by the clock, of busy processors, stolen from them, and used by our processes."""

    clock_s: float
    busy_s: float
    steal_s: float
    own_s: float


def machine_seconds(stat: str, ticks_per_s: float) -> tuple[float, float]:
    """(busy, stolen) seconds of all processors, from the text of ``/proc/stat``."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, stat.split("\n", 1)[0].split()[1:9])
    return (user + nice + system + irq + softirq) / ticks_per_s, steal / ticks_per_s


def process_seconds(stat: str, ticks_per_s: float) -> float:
    """Processor seconds of one process, from the text of ``/proc/N/stat``; its name may hold spaces and brackets."""
    fields = stat.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / ticks_per_s


def judged(
    number: int, before: Reading | None, after: Reading | None, num_cores: int, late_share: float = 0.0
) -> Disturbance | None:
    """The disturbance of round ``number``; ``None`` where there was none worth a mark, or nothing is known."""
    by_others = _by_others(number, before, after, num_cores) if before is not None and after is not None else None
    if late_share <= MOST_LATE_SHARE:
        return by_others
    return replace(by_others or Disturbance(round=number), late_share=late_share)


def _by_others(number: int, before: Reading, after: Reading, num_cores: int) -> Disturbance | None:
    total_s, steal_s, foreign_s = _taken(before, after, num_cores)
    stolen = steal_s >= max(_LEAST_S, MOST_STEAL_SHARE * total_s)
    foreign = foreign_s >= max(_LEAST_S, MOST_FOREIGN_SHARE * total_s)
    if not stolen and not foreign:
        return None
    return Disturbance(round=number, steal_share=steal_s / total_s, foreign_share=foreign_s / total_s)


def _taken(before: Reading, after: Reading, num_cores: int) -> tuple[float, float, float]:
    """Seconds of all processors: that there were, stolen, and used by others."""
    total_s = max(1e-9, (after.clock_s - before.clock_s) * num_cores)
    foreign_s = max(0.0, after.busy_s - before.busy_s - (after.own_s - before.own_s))
    return total_s, after.steal_s - before.steal_s, foreign_s


def others_share(read: Callable[[], Reading | None], num_cores: int, pause: Callable[[float], None]) -> float:
    """The share of all processors that is not ours during a look; 0 where there are no counters."""
    before = read()
    pause(LOOK_S)
    after = read()
    if before is None or after is None:
        return 0.0
    total_s, steal_s, foreign_s = _taken(before, after, num_cores)
    return min(1.0, (steal_s + foreign_s) / total_s)  # the counters tick more coarsely than the clock


def watched(
    rounds: Iterable[int],
    read: Callable[[], Reading | None],
    num_cores: int,
    note: Callable[[Disturbance], None],
    late_share: Callable[[], float] = lambda: 0.0,
) -> Iterator[int]:
    """``rounds``, with a reading around each and one of ``late_share`` after it; ``note`` hears of those that were
    disturbed."""
    for number in rounds:
        before = read()
        yield number
        found = judged(number, before, read(), num_cores, late_share())
        if found is not None:
            note(found)


def reader(process_ids: Sequence[int]) -> Callable[[], Reading | None]:
    """Reads the counters of this machine; ours are this process and ``process_ids``. ``None`` where there are none."""

    def read() -> Reading | None:
        try:
            busy_s, steal_s = machine_seconds(Path("/proc/stat").read_text(encoding="ascii"), _TICKS_PER_S)
            own_s = sum(map(_process_s, ("self", *map(str, process_ids))))
        except (OSError, ValueError):
            return None
        return Reading(clock_s=time.monotonic(), busy_s=busy_s, steal_s=steal_s, own_s=own_s)

    return read


def _process_s(name: str) -> float:
    return process_seconds(Path(f"/proc/{name}/stat").read_text(encoding="utf-8", errors="replace"), _TICKS_PER_S)
