"""An engine in a process of its own, as a contender: the process is told what to run and says how long it took."""

from __future__ import annotations

import contextlib
import json
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgedi.bench.contenders import tensors_of
from edgedi.errors import EdgediError
from edgedi.runtime.emulation.calm import CALM

READY_TIMEOUT_S = 600.0
"""torch.compile of a large network on one thread takes minutes."""
REQUEST_TIMEOUT_S = 120.0
_STOP_TIMEOUT_S = 5.0


class EngineFailed(EdgediError):
    """An engine could not take the network, or its process ended."""


class EngineContender:
    """Starts the process; ``wait`` until it is ready; ``close`` it. Times are the engine's own, without the pipe.

    With a ``slowdown`` above 1 they are those of an emulated device: the engine's processor time, times so much. With
    ``warm`` that is measured before the first request, as programs of such devices are rehearsed, and counts for each.
    """

    def __init__(
        self,
        engine: str,
        model: str,
        tensors: Path,
        cores: Sequence[int],
        threads: int,
        *,
        slowdown: float = 1.0,
        warm: bool = False,
    ) -> None:
        self.name = engine
        self.version = self.precision = ""
        self._folder = tensors.parent
        self._words = tempfile.TemporaryFile("w+", dir=self._folder)  # noqa: SIM115  # closed by close()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "edgedi.bench.engine_process"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._words, text=True,
        )  # fmt: skip
        self._tell(
            engine=engine, model=model, tensors=str(tensors), cores=list(cores), threads=threads,
            slowdown=slowdown, warm=warm, calm_loop_s=CALM.best_s,
        )  # fmt: skip

    @property
    def process_id(self) -> int:
        """Whose processor time belongs to this run."""
        return self._process.pid

    def wait(self) -> None:
        """Until the engine has taken the network. ``EngineFailed`` with its own words if it does not."""
        found = self._heard(READY_TIMEOUT_S)
        self.version, self.precision = found["version"], found["precision"]

    def seconds(self, index: int) -> float:
        """See ``Contender``."""
        self._tell(index=index)
        return float(self._heard(REQUEST_TIMEOUT_S)["seconds"])

    def rehearse_again(self) -> None:
        """At another moment, as the workers' programs are when their bound is measured: the shorter counts."""
        self._tell(rehearse=True)
        self._heard(READY_TIMEOUT_S)

    def answer(self, index: int) -> list[Tensor]:
        """See ``Contender``."""
        path = self._folder / f"{self.name}-{index}.pt"
        self._tell(index=index, path=str(path))
        self._heard(REQUEST_TIMEOUT_S)
        return tensors_of(torch.load(path, weights_only=True))

    def close(self) -> None:
        """End the process: it ends with its input, or is made to. Idempotent."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        try:
            self._process.wait(_STOP_TIMEOUT_S if self.version else 0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._words.close()

    def _tell(self, **values: Any) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(values) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None

    def _heard(self, timeout_s: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        until_s = time.monotonic() + timeout_s
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(until_s - time.monotonic()):
                raise EngineFailed(f"{self.name} did not answer within {timeout_s:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            raise self._ended()
        values: dict[str, Any] = json.loads(line)
        if "error" in values:
            raise EngineFailed(f"{self.name}: {values['error']}")
        return values

    def _ended(self) -> EngineFailed:
        code = self._process.wait()
        self._words.seek(0)
        words = self._words.read().strip().splitlines()
        return EngineFailed(f"{self.name}: its process ended with {code}: {' '.join(words[-2:])}")


def save_tensors(network: nn.Module, inputs: Sequence[tuple[Tensor, ...]], folder: Path) -> Path:
    """The file from which engines take weights and inputs."""
    path = folder / "tensors.pt"
    torch.save({"weights": network.state_dict(), "inputs": [list(each) for each in inputs]}, path)
    return path
