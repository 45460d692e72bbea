"""A compact network on several devices against the original on one: what compaction gives, what partition, and both.

    EDGEDI_COMPACT=FOLDER .venv/bin/python -m bench.together --original bench.models:vgg16_cifar --input 1x3x32x32 \
        --testbeds pi4x2,pi4x4,pi4x2@100M,pi4x4@100M --out bench/results/FOLDER

``bench.compaction`` saves the networks that it makes. Both networks are measured by edgedi-bench on each testbed. One
device is the fastest way there, an engine or one worker. The table is kept in FOLDER/together.txt. A saved network
takes inputs of its own size; for others there is --compact bench.models:vgg16_scar, weights random. The gain is that of
the compact network on all devices over the original on one: the product of what compaction alone gives on one device
and of what partition adds. Exit code 1 where a bar is missed, or not decided by that many rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from bench.bars import FAIL, LEAST_ROUNDS, PASS, PLANNER, SINGLE, UNDECIDED
from edgedi import distribute
from edgedi.bench.networks import load_network, random_input
from edgedi.bench.numbers import Ratio, apart_times_as_fast

MOST_MEMORY, MEMORY_DEVICES = 0.5, 4
"""Of the original on one device, above what a worker has right after its imports: the bar on four devices or more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """One testbed; seconds of each round, and bytes above what a worker has right after its imports."""

    testbed: str
    num_devices: int
    original_s: Sequence[float]
    compact_s: Sequence[float]
    compact_split_s: Sequence[float]
    original_bytes: int
    split_bytes: int

    @property
    def compaction(self) -> float:
        """The best way on one device, original over compact."""
        return median(self.original_s) / median(self.compact_s)

    @property
    def partition(self) -> float:
        """The compact network, one device over all."""
        return median(self.compact_s) / median(self.compact_split_s)

    @property
    def total(self) -> Ratio:
        """The original on one device over the compact network on all. Each was measured in a run of its own."""
        return apart_times_as_fast(self.compact_split_s, self.original_s)

    @property
    def memory(self) -> float:
        """The compact network's largest worker, split equally, over the original on one device."""
        return self.split_bytes / self.original_bytes

    @property
    def verdict(self) -> str:
        """On the gain, which shall be more than the number of devices."""
        rounds = min(len(self.original_s), len(self.compact_split_s))
        if rounds < LEAST_ROUNDS or self.total.low <= self.num_devices < self.total.high:
            return UNDECIDED
        return PASS if self.total.low > self.num_devices else FAIL

    @property
    def fits(self) -> bool:
        """Whether workers need as little memory as the bar asks of so many."""
        return self.num_devices < MEMORY_DEVICES or self.memory <= MOST_MEMORY


def gain_of(
    testbed: str, original: Mapping[str, Any], compact: Mapping[str, Any], *, original_bytes: int, split_bytes: int
) -> Gain:
    """From what edgedi-bench wrote of both networks."""
    split = next(each for each in compact["planners"] if each["name"] == PLANNER)
    return Gain(
        testbed=testbed,
        num_devices=len(compact["settings"]["testbed"]["devices"]),
        original_s=_one_device_s(original),
        compact_s=_one_device_s(compact),
        compact_split_s=split["seconds"],
        original_bytes=original_bytes,
        split_bytes=split_bytes,
    )


def _one_device_s(run: Mapping[str, Any]) -> Sequence[float]:
    """Of the fastest way on one device: an engine, or one worker."""
    (single,) = [each for each in run["planners"] if each["name"] == SINGLE]
    return min((each["seconds"] for each in (single, *run["engines"])), key=median)


def worker_bytes(model: nn.Module, x: Tensor, num_workers: int) -> int:
    """The most that any of so many local workers needs, above what it had right after its imports.

    In processes of their own, unlike the first device of a testbed, which is the one that measures.
    """
    with distribute(model, x, workers=num_workers, planner="equal", rebalance=False) as session:
        for _ in range(3):
            session(x)
        told = session.statistics().workers.values()
    return max(int(worker["peak_memory_bytes"]) - int(worker["baseline_memory_bytes"]) for worker in told)


def measured(model: str, shape: str, testbed: str, planners: str, rounds: int, path: Path) -> Mapping[str, Any]:
    """edgedi-bench in a process of its own; kept as JSON, and not measured again where it is there."""
    if not path.exists():
        near = os.path.relpath(path)
        subprocess.run(
            [
                sys.executable, "-m", "edgedi.cli.bench", "--model", model, "--input", shape, "--testbed", testbed,
                "--planners", planners, "--rounds", str(rounds), "--json", near,
            ],
            check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def table_of(gains: Sequence[Gain]) -> Table:
    """A line for each testbed."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("testbed")
    for column in (
        "devices", "original, one device (ms)", "compact, one device (ms)", "compact, split (ms)", "compaction",
        "partition", "together", "above N", "memory",
    ):  # fmt: skip
        table.add_column(column, justify="right")
    for gain in gains:
        times = (f"{1000 * median(each):.1f}" for each in (gain.original_s, gain.compact_s, gain.compact_split_s))
        total = f"{gain.total.median:.2f} [{gain.total.low:.2f}, {gain.total.high:.2f}]"
        factors = (f"{gain.compaction:.2f}", f"{gain.partition:.2f}", total)
        fits = f" {PASS if gain.fits else FAIL}" if gain.num_devices >= MEMORY_DEVICES else ""
        table.add_row(gain.testbed, str(gain.num_devices), *times, *factors, gain.verdict, f"{gain.memory:.2f}{fits}")
    return table


def _tell(table: Table, path: Path) -> None:
    """On the terminal and in a file."""
    Console(width=160).print(table)
    with path.open("w", encoding="utf-8") as file:
        Console(width=160, file=file).print(table)


def main(argv: Sequence[str] | None = None) -> int:
    made = argparse.ArgumentParser(prog="python -m bench.together", description=__doc__.splitlines()[0])
    made.add_argument("--original", required=True, metavar="NAME", help="module:callable")
    made.add_argument("--compact", default="bench.models:compact", metavar="NAME", help="default: %(default)s")
    made.add_argument("--input", required=True, metavar="SHAPE")
    made.add_argument("--testbeds", default="pi4x2,pi4x4,pi4x2@100M,pi4x4@100M", metavar="SPEC,...")
    made.add_argument("--rounds", type=int, default=20, metavar="N")
    made.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    arguments = made.parse_args(argv)
    arguments.out.mkdir(parents=True, exist_ok=True)
    x = random_input(tuple(int(size) for size in arguments.input.split("x")))
    original, compact = load_network(arguments.original), load_network(arguments.compact)
    gains: list[Gain] = []
    for testbed in arguments.testbeds.split(","):
        runs = [
            measured(
                model, arguments.input, testbed, planners, arguments.rounds,
                arguments.out / f"{testbed.replace('@', '-')}-{kind}.json",
            )
            for kind, model, planners in (
                ("original", arguments.original, "single"), ("compact", arguments.compact, PLANNER)
            )
        ]  # fmt: skip
        num = len(runs[1]["settings"]["testbed"]["devices"])
        gains.append(
            gain_of(
                testbed, *runs, original_bytes=worker_bytes(original, x, 1), split_bytes=worker_bytes(compact, x, num)
            )
        )
        _tell(table_of(gains), arguments.out / "together.txt")
    return 0 if all(gain.verdict == PASS and gain.fits for gain in gains) else 1


if __name__ == "__main__":
    sys.exit(main())
