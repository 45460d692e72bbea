"""What a number was measured on: processor, cores, load, versions, command and time. A claim carries its evidence."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from dataclasses import dataclass
from datetime import datetime, timezone

import torch

from edgedi.bench.cores import usable_cores
from edgedi.runtime.version import software_version

BUSY_LOAD = 0.5
"""From so many processes on, running on average of the minute before we began, the machine counts as busy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The machine that the command runs on, and what runs there."""

    processor: str
    num_cores: int
    system: str
    python: str
    torch: str
    edgedi: str
    load: float
    command: str
    date: str

    @property
    def busy(self) -> str:
        """What to think of times taken now; empty where nothing else ran before."""
        if self.load < BUSY_LOAD:
            return ""
        return (
            f"Other programs kept this machine busy (load {self.load:.1f}) before this began: do not trust the times."
        )

    def __str__(self) -> str:
        return (
            f"{self.processor}, {self.num_cores} cores; {self.system}; Python {self.python}, torch {self.torch}, "
            f"edgedi {self.edgedi}; {self.date}"
        )


def this_machine() -> Machine:
    """What this process finds out about where it runs; the load is that before anything of ours began."""
    return Machine(
        processor=_processor(),
        num_cores=len(usable_cores()) or os.cpu_count() or 1,
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        torch=torch.__version__,
        edgedi=software_version(),
        load=os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0,
        command=shlex.join(["edgedi-bench", *sys.argv[1:]]),
        date=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    )


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
