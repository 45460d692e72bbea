"""What a number was measured on: processor, cores, load, versions, command and time. A claim carries its evidence."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from datetime import datetime, timezone

import torch

from edgedi.bench.cores import usable_cores
from edgedi.bench.report import Machine
from edgedi.runtime.version import software_version


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
