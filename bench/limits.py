"""What keeps a measured run from its bar: computing, the bytes on the wire, or messages and waiting.

    .venv/bin/python -m bench.limits --results bench/results/FOLDER [--engine openvino] [--rounds 30]
    .venv/bin/python -m bench.limits --recorded --results bench/results/FOLDER ...

For every run in the folders on N equal workers, a table in milliseconds. The engine takes the whole input on one core,
and 1/N of its rows (no halos; what stands behind a flatten or a global pool whole) on as many cores at once as the run
had, of which the slowest counts: they share caches, memory and the clock's rate. Emulated devices share none of that,
so their slice is computed alone. The bound is our own plan with no communication, the least of ten runs: it should be
within 10 % of the engine's slice; *least* is the lowest of all planners' bounds in the run. The wire is the time that
the busiest device's cable takes for the bytes that it must carry, nothing hidden. *Divided* is the engine's time
divided by all devices' speed together: nothing is lost.

Slices are measured now: that says nothing of runs on another machine. For those ``--recorded`` takes the runs' own
numbers alone, and workers may be unequal.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from bench.bars import CASES, FAIL, PASS, PLANNER, file_stem
from edgedi.bench.cores import deal
from edgedi.bench.engine_contender import EngineContender, EngineFailed, save_tensors
from edgedi.bench.networks import load_network
from edgedi.bench.testbed.spec import WARM

MOST_OVER = 1.1
"""The bound against the engine's time for a slice."""
_BARS = {file_stem(case): case.least_speedup for case in CASES}
"""By the name of a run's file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """One run; milliseconds."""

    name: str
    engine_ms: float
    divided_ms: float
    bar_ms: float | None
    slice_ms: float | None
    least_ms: float
    bound_ms: float
    wire_ms: float
    measured_ms: float

    @property
    def executor(self) -> str:
        """Whether the bound is near enough to the engine's slice; empty where that is not known."""
        if self.slice_ms is None:
            return ""
        return PASS if self.bound_ms <= MOST_OVER * self.slice_ms else FAIL

    @property
    def verdict(self) -> str:
        """What stands between the run and its bar."""
        if self.bar_ms is None or self.measured_ms <= self.bar_ms:
            return "reached" if self.bar_ms else ""
        if self.least_ms > self.bar_ms:
            if self.slice_ms is None:
                return "computing"
            return f"computing, in {'either' if self.slice_ms > self.bar_ms else 'our'} executor"
        if self.bound_ms > self.bar_ms:
            return "messages: computing more spares some"
        if self.bound_ms + self.wire_ms > self.bar_ms:
            return "bytes on the wire"
        return "messages and waiting"


def limit_of(
    run: Mapping[str, Any], engine_s: float, slice_s: float | None, least_speedup: float | None
) -> Limit | None:
    """From what edgedi-bench wrote; ``None`` where there is no plan of ours."""
    split = next((each for each in run.get("planners", ()) if each["name"] == PLANNER), None)
    if split is None:
        return None
    best_s = min((engine["median_s"] for engine in run["engines"]), default=engine_s)
    testbed = run["settings"]["testbed"]
    return Limit(
        name=f"{testbed['name'] if testbed else 'local'} {run['settings']['model'].partition(':')[2]} "
        f"{run['settings']['shapes'][0][2]}, {run['machine']['date'][:16]}",
        engine_ms=1000 * engine_s,
        divided_ms=1000 * engine_s / _speed(run["settings"]),
        bar_ms=1000 * best_s / least_speedup if least_speedup else None,
        slice_ms=None if slice_s is None else 1000 * slice_s,
        least_ms=1000 * min(each["bound_s"] for each in run["planners"]),
        bound_ms=1000 * split["bound_s"],
        wire_ms=1000 * wire_seconds(split["bytes_per_link"], _devices(run["settings"])),
        measured_ms=1000 * split["median_s"],
    )


def _speed(settings: Mapping[str, Any]) -> float:
    """Of all devices together, the quickest one's being 1."""
    slowdowns = [device["slowdown"] for device in _devices(settings)]
    return sum(min(slowdowns) / each for each in slowdowns) if slowdowns else float(settings["num_local"])


def _devices(settings: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """Of the testbed; none of local workers."""
    return (settings["testbed"] or {}).get("devices", [])


def wire_seconds(bytes_per_link: Mapping[str, int], devices: Sequence[Mapping[str, Any]]) -> float:
    """The longest that any device's cable takes in one direction; the coordinator is on the first device.

    None where there are no ``devices``: local workers have no cables.
    """
    if not devices:
        return 0.0
    carried: dict[tuple[int, str], int] = {}
    for link, num_bytes in bytes_per_link.items():
        source, target = (_device(end) for end in link.split(" -> "))
        if source != target:
            for key in ((source, "out"), (target, "in")):
                carried[key] = carried.get(key, 0) + num_bytes
    seconds = (8 * count / devices[device]["link"]["rate_bits_per_s"] for (device, _), count in carried.items())
    return max(seconds, default=0.0)


def _device(participant: str) -> int:
    return 0 if participant == "home" else int(participant.partition(":")[0])


def engine_seconds(
    engine: str,
    model: str,
    shape: Sequence[int],
    num_slices: int,
    *,
    at_once: int,
    slowdown: float,
    warm: bool,
    rounds: int,
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
            made = EngineContender(engine, model, tensors, cores, 1, slowdown=slowdown, warm=warm)
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


def limits(folders: Sequence[Path], engine: str, rounds: int) -> list[Limit]:
    """Of every run in ``folders`` whose workers are equal."""
    found = []
    for stem, run in _runs(folders):
        settings, devices = run["settings"], _devices(run["settings"])
        slowdowns = {device["slowdown"] for device in devices} or {1.0}
        if len(slowdowns) > 1:
            continue
        num, model, shape = len(devices) or settings["num_local"], settings["model"], settings["shapes"][0]
        try:
            whole_s, slice_s = engine_seconds(
                engine, model, shape, num, at_once=1 if devices else num, slowdown=slowdowns.pop(),
                warm=(settings["testbed"] or {}).get("work") == WARM, rounds=rounds,
            )  # fmt: skip
        except EngineFailed as error:  # an eighth of 224 rows is too little for the pools of VGG-16
            print(f"{stem}: left out, as the network refuses 1/{num} of the rows: {error}", file=sys.stderr)
            continue
        found.append(limit_of(run, whole_s, slice_s, _BARS.get(stem)))
    return [limit for limit in found if limit is not None]


def recorded_limits(folders: Sequence[Path]) -> list[Limit]:
    """Of every run in ``folders`` that has a bar and an engine to compare with, without measuring anything."""
    found = [
        limit_of(run, min(engine["median_s"] for engine in run["engines"]), None, _BARS[stem])
        for stem, run in _runs(folders)
        if run["engines"] and stem in _BARS
    ]
    return [limit for limit in found if limit is not None]


def _runs(folders: Sequence[Path]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every comparison kept in ``folders``, by its file's name."""
    for path in (path for folder in folders for path in sorted(folder.glob("*.json"))):
        run = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(run, dict) and "planners" in run:
            yield path.stem, run


def table_of(found: Sequence[Limit], engine: str) -> Table:
    """Milliseconds, and what stands between each run and its bar; without slices where none is known."""
    sliced = any(one.slice_ms is not None for one in found)
    table = Table(box=box.SIMPLE_HEAD, title="milliseconds", title_justify="left")
    table.add_column("run")
    slices = (f"{engine}, a slice", "bound", "within 10 %") if sliced else ("least", "bound")
    for column in (engine, "divided", "the bar asks", *slices, "wire", "measured"):
        table.add_column(column, justify="right")
    table.add_column("what stands before the bar")
    for one in found:
        bound = (
            (_number(one.slice_ms), _number(one.bound_ms), one.executor) if sliced
            else (_number(one.least_ms), _number(one.bound_ms))
        )  # fmt: skip
        before = (_number(one.engine_ms), _number(one.divided_ms), _number(one.bar_ms))
        table.add_row(one.name, *before, *bound, _number(one.wire_ms), _number(one.measured_ms), one.verdict)
    return table


def _number(milliseconds: float | None) -> str:
    if milliseconds is None:
        return ""
    return f"{milliseconds:.0f}" if milliseconds >= 100 else f"{milliseconds:.3g}"


def main(argv: Sequence[str] | None = None) -> None:
    made = argparse.ArgumentParser(prog="python -m bench.limits", description=__doc__.splitlines()[0])
    made.add_argument("--results", type=Path, nargs="+", required=True, metavar="FOLDER")
    made.add_argument("--engine", default="openvino", help="whose slices to measure (default %(default)s)")
    made.add_argument("--rounds", type=int, default=30, metavar="N")
    made.add_argument("--recorded", action="store_true", help="measure nothing: the numbers of the runs alone, against "
                      "the engine that was best in each")  # fmt: skip
    arguments = made.parse_args(argv)
    if missing := [str(folder) for folder in arguments.results if not folder.is_dir()]:
        made.error(f"no such folder: {', '.join(missing)}")
    if arguments.recorded:
        found, engine = recorded_limits(arguments.results), "best engine"
    else:
        found, engine = limits(arguments.results, arguments.engine, arguments.rounds), arguments.engine
    if not found:
        made.error("no run in these folders has a plan of ours, an engine and, with --recorded, a bar")
    Console(width=180).print(table_of(found, engine))


if __name__ == "__main__":
    main()
