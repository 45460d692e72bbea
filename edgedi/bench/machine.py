"""What a number was measured on: processor, who else uses it, versions, command, time. A claim carries its evidence."""

from __future__ import annotations

import os
import platform
import shlex
import sys
import time
from datetime import datetime, timezone

import torch

from edgedi.bench.cores import usable_cores
from edgedi.bench.disturbances import others_share, reader
from edgedi.bench.report import Machine
from edgedi.runtime.version import software_version


def this_machine() -> Machine:
    """What this process finds out about where it runs, in a second's look at who else does, before anything of ours."""
    num_cores = len(usable_cores()) or os.cpu_count() or 1
    return Machine(
        processor=_processor(),
        num_cores=num_cores,
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        torch=torch.__version__,
        edgedi=software_version(),
        others_share=others_share(reader(()), os.cpu_count() or num_cores, time.sleep),
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
