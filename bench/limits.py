"""What keeps a measured run from its bar: computing, the bytes on the wire, or messages and waiting.

    .venv/bin/python -m bench.limits --results bench/results/FOLDER [--engine openvino] [--rounds 30]

For every run in the folder on N equal workers, a table in milliseconds. The engine takes the whole input on one core,
and 1/N of its rows (no halos; what stands behind a flatten or a global pool whole) on as many cores at once as the run
had, of which the slowest counts: they share caches, memory and the clock's rate. Emulated devices share none of that,
so their slice is computed alone. The bound is our own plan with no communication, each layer's least: it should be
within 10 % of the engine's slice. The wire is the time that the busiest device's cable takes for the bytes that it
must carry, nothing hidden.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from bench.bars import CASES, FAIL, PASS, PLANNER
from edgedi.bench.cores import deal
from edgedi.bench.engine_contender import EngineContender, EngineFailed, save_tensors
from edgedi.bench.networks import load_network

MOST_OVER = 1.1
"""The bound against the engine's time for a slice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """One run; milliseconds."""

    name: str
    engine_ms: float
    bar_ms: float | None
    slice_ms: float
    bound_ms: float
    wire_ms: float
    measured_ms: float

    @property
    def executor(self) -> str:
        """Whether the bound is near enough to the engine's slice."""
        return PASS if self.bound_ms <= MOST_OVER * self.slice_ms else FAIL

    @property
    def verdict(self) -> str:
        """What stands between the run and its bar."""
        if self.bar_ms is None or self.measured_ms <= self.bar_ms:
            return "reached" if self.bar_ms else ""
        if min(self.slice_ms, self.bound_ms) > self.bar_ms:
            return "computing, in either executor"
        if self.bound_ms > self.bar_ms:
            return "computing, in our executor"
        if self.bound_ms + self.wire_ms > self.bar_ms:
            return "bytes on the wire"
        return "messages and waiting"


def limit_of(run: Mapping[str, Any], engine_s: float, slice_s: float, least_speedup: float | None) -> Limit | None:
    """From what edgedi-bench wrote; ``None`` where there is no plan of ours."""
    split = next((each for each in run.get("planners", ()) if each["name"] == PLANNER), None)
    if split is None:
        return None
    best_s = min((engine["median_s"] for engine in run["engines"]), default=engine_s)
    testbed = run["settings"]["testbed"]
    slowest = min(device["link"]["rate_bits_per_s"] for device in testbed["devices"]) / 8 if testbed else float("inf")
    wire_s = busiest_bytes(split["bytes_per_link"]) / slowest
    return Limit(
        name=f"{testbed['name'] if testbed else 'local'} {run['settings']['model'].partition(':')[2]} "
        f"{run['settings']['shapes'][0][2]}",
        engine_ms=1000 * engine_s,
        bar_ms=1000 * best_s / least_speedup if least_speedup else None,
        slice_ms=1000 * slice_s,
        bound_ms=1000 * split["bound_s"],
        wire_ms=1000 * wire_s,
        measured_ms=1000 * split["median_s"],
    )


def busiest_bytes(bytes_per_link: Mapping[str, int]) -> int:
    """The most bytes that any device's cable carries in one direction; the coordinator is on the first device."""
    carried: dict[tuple[str, str], int] = {}
    for link, num_bytes in bytes_per_link.items():
        source, _, target = (_device(end) for end in link.partition(" -> "))
        if source != target:
            for key in ((source, "out"), (target, "in")):
                carried[key] = carried.get(key, 0) + num_bytes
    return max(carried.values(), default=0)


def _device(participant: str) -> str:
    return "0" if participant == "home" else participant.partition(":")[0]


def engine_seconds(
    engine: str, model: str, shape: Sequence[int], num_slices: int, *, at_once: int, slowdown: float, rounds: int
) -> tuple[float, float]:
    """(whole input on one core, a slice of its rows on each of ``at_once`` cores), medians of alternating turns."""
    torch.manual_seed(0)
    network, rows = load_network(model), -(-shape[2] // num_slices)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        threads = stack.enter_context(ThreadPoolExecutor(at_once))

        def start(name: str, height: int, cores: Sequence[int]) -> EngineContender:
            place = Path(folder) / name
            place.mkdir()
            tensors = save_tensors(network, [(torch.rand(*shape[:2], height, shape[3]),)], place)
            made = EngineContender(engine, model, tensors, cores, 1, slowdown=slowdown)
            stack.callback(made.close)
            made.wait()
            return made

        whole = start("whole", shape[2], deal(1, 1)[0])
        slices = [start(f"slice {k}", rows, cores) for k, cores in enumerate(deal(at_once, 1))]
        taken = [
            (whole.seconds(0), max(threads.map(lambda contender: contender.seconds(0), slices))) for _ in range(rounds)
        ]
    whole_s, slice_s = (statistics.median(column) for column in zip(*taken, strict=True))
    return whole_s, slice_s


def limits(folder: Path, engine: str, rounds: int) -> list[Limit]:
    """Of every run in ``folder`` whose workers are equal."""
    bars = {"-".join(case.name.replace("@", " ").split()).replace("_", "-"): case.least_speedup for case in CASES}
    found = []
    for path in sorted(folder.glob("*.json")):
        run = json.loads(path.read_text(encoding="utf-8"))
        devices = (run["settings"]["testbed"] or {}).get("devices", [])
        slowdowns = {device["slowdown"] for device in devices} or {1.0}
        if "planners" not in run or len(slowdowns) > 1:
            continue
        num, settings = len(devices) or run["settings"]["num_local"], run["settings"]
        model, shape = settings["model"], settings["shapes"][0]
        try:
            whole_s, slice_s = engine_seconds(
                engine, model, shape, num, at_once=1 if devices else num, slowdown=slowdowns.pop(), rounds=rounds
            )
        except EngineFailed as error:  # an eighth of 224 rows is too little for the pools of VGG-16
            print(f"{path.stem}: left out, as the network refuses 1/{num} of the rows: {error}", file=sys.stderr)
            continue
        limit = limit_of(run, whole_s, slice_s, bars.get(path.stem))
        found += [limit] if limit is not None else []
    return found


def table_of(found: Sequence[Limit], engine: str) -> Table:
    """Milliseconds, and what stands between each run and its bar."""
    table = Table(box=box.SIMPLE_HEAD, title="milliseconds", title_justify="left")
    table.add_column("run")
    for column in (engine, "the bar asks", f"{engine}, a slice", "bound", "within 10 %", "wire", "measured"):
        table.add_column(column, justify="right")
    table.add_column("what stands before the bar")
    for one in found:
        bar = "" if one.bar_ms is None else f"{one.bar_ms:.3g}"
        numbers = (f"{one.engine_ms:.3g}", bar, f"{one.slice_ms:.3g}", f"{one.bound_ms:.3g}", one.executor)
        table.add_row(one.name, *numbers, f"{one.wire_ms:.3g}", f"{one.measured_ms:.3g}", one.verdict)
    return table


def main(argv: Sequence[str] | None = None) -> None:
    made = argparse.ArgumentParser(prog="python -m bench.limits", description=__doc__.splitlines()[0])
    made.add_argument("--results", type=Path, required=True, metavar="FOLDER")
    made.add_argument("--engine", default="openvino")
    made.add_argument("--rounds", type=int, default=30, metavar="N")
    arguments = made.parse_args(argv)
    found = limits(arguments.results, arguments.engine, arguments.rounds)
    Console(width=160).print(table_of(found, arguments.engine))


if __name__ == "__main__":
    main()
