"""A ``compact`` that a test kills: as a process of its own, it trains until step 12 and then waits for its end."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from edgedi.transforms import store
from edgedi.transforms.compact import compact
from edgedi.transforms.recover import training
from tests.transforms.recover.toy import batches_of, blobs, network

STEPS = 30
TOLD = "recover: step {} of " + str(STEPS)
"""The line of progress that begins so; there is one for each tenth of the steps, here the third."""


def run(checkpoint: Path | None = None, progress: Callable[[str], None] | bool = False) -> nn.Module:
    """Labels are learnt by a network that knows nothing; every step is kept."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(training, "STEPS_WITHOUT_BUDGET", STEPS)
        patched.setattr(store, "EVERY_S", 0.0)
        return compact(
            network(), blobs(8)[0], train=batches_of(*blobs()), validate=batches_of(*blobs(300, seed=1)),
            loss=F.cross_entropy, steps=("simplify", "recover"), checkpoint=checkpoint, progress=progress,
        )  # fmt: skip


def _say(line: str) -> None:
    print(line, flush=True)
    if line.startswith(TOLD.format(12)):
        threading.Event().wait()


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[2]))
    run(Path(sys.argv[1]), _say)
