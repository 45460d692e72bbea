"""What sleeping costs the computation that follows: why emulated devices are charged what layers take with warm caches.

    .venv/bin/python -m bench.cold_caches

Processor milliseconds of a quarter of the rows of every layer, in PyTorch on one thread: one after another, as a busy
device runs them, and with a pause before every third layer, as a device that waits for its halos does where it is
emulated at ten or more times its pace. In turn, medians.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from bench.layer_calls import Call, layer_calls
from edgedi.bench.networks import load_network
from edgedi.partition.capture.capture import capture_model
from edgedi.runtime.coordinator.profiler import profile_programs
from edgedi.runtime.execution.tensors import inference

MODELS = ("torchvision:resnet50", "torchvision:vgg16")
PAUSES_S = (0.0, 0.001, 0.005, 0.02)
ROUNDS, WARM, EVERY = 15, 1, 3
ROWS = ("rows", 4)

Layers = Sequence[Call]


def layers_of(model: str) -> Layers:
    """Each layer's part of the rows."""
    captured = capture_model(load_network(model), (torch.randn(1, 3, 224, 224),))
    return layer_calls(profile_programs(captured.graph)[ROWS], captured)


def seconds(layers: Layers, pause_s: float, cpu: Callable[[], float] = time.thread_time) -> float:
    """Processor seconds of all layers, with a pause before every third of them."""
    taken_s = 0.0
    for number, layer in enumerate(layers):
        if pause_s and number % EVERY == 0:
            time.sleep(pause_s)
        started_s = cpu()
        layer()
        taken_s += cpu() - started_s
    return taken_s


def measured(layers: Layers) -> list[float]:
    """Median seconds for each of the pauses, taken in turn."""
    with inference():
        rounds = [[seconds(layers, pause_s) for pause_s in PAUSES_S] for _ in range(WARM + ROUNDS)]
    return [statistics.median(column) for column in zip(*rounds[WARM:], strict=True)]


def main() -> int:
    torch.set_num_threads(1)
    table = Table(box=box.SIMPLE_HEAVY)
    table.add_column("a quarter of the rows of")
    for pause_s in PAUSES_S:
        table.add_column(f"pauses of {1000 * pause_s:g} ms" if pause_s else "no pauses", justify="right")
    for model in MODELS:
        warm_s, *rest = measured(layers_of(model))
        slower = [f"{1000 * each_s:.1f} ms ({each_s / warm_s - 1:+.0%})" for each_s in rest]
        table.add_row(model.partition(":")[2], f"{1000 * warm_s:.1f} ms", *slower)
    Console(width=120).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
