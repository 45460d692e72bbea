"""What the best engine takes for a slice of the input: how far a bound of ours is from a faster executor's.

    .venv/bin/python -m bench.slice_time --results bench/results/FOLDER [--engine openvino] [--rounds 30]

For every run in the folder on N equal workers: the engine on one core takes the whole input and 1/N of its rows (no
halos, layers behind a flatten or a global pool whole), in turn. The bound of the run (the same plan with no
communication) should be within 10 % of the engine's time for the slice.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from bench.bars import FAIL, PASS, PLANNER
from edgedi.bench.engine_contender import EngineContender, save_tensors
from edgedi.bench.networks import load_network

MOST_OVER = 1.1


def engine_seconds(
    engine: str, model: str, shape: Sequence[int], num_slices: int, *, slowdown: float, rounds: int
) -> tuple[float, float]:
    """(whole input, a slice of its rows), medians of alternating turns on one core."""
    torch.manual_seed(0)
    network, rows = load_network(model), -(-shape[2] // num_slices)
    with tempfile.TemporaryDirectory() as folder:
        contenders = []
        try:
            for name, height in (("whole", shape[2]), ("slice", rows)):
                place = Path(folder) / name
                place.mkdir()
                tensors = save_tensors(network, [(torch.rand(*shape[:2], height, shape[3]),)], place)
                contenders.append(EngineContender(engine, model, tensors, [0], 1, slowdown=slowdown))
                contenders[-1].wait()
            taken = [[contender.seconds(0) for contender in contenders] for _ in range(rounds)]
        finally:
            for contender in contenders:
                contender.close()
    whole_s, slice_s = (statistics.median(column) for column in zip(*taken, strict=True))
    return whole_s, slice_s


def line_of(run: Mapping[str, Any], engine: str, rounds: int) -> str | None:
    """A line about one run; ``None`` where its workers are not equal, or it has no planner of ours."""
    split = next((each for each in run.get("planners", ()) if each["name"] == PLANNER), None)
    devices = (run["settings"]["testbed"] or {}).get("devices", [])
    slowdowns = {device["slowdown"] for device in devices} or {1.0}
    if split is None or len(slowdowns) > 1:
        return None
    settings = run["settings"]
    model, shape, num = settings["model"], settings["shapes"][0], len(devices) or settings["num_local"]
    whole_s, slice_s = engine_seconds(engine, model, shape, num, slowdown=slowdowns.pop(), rounds=rounds)
    over, where = split["bound_s"] / slice_s, settings["testbed"]["name"] if devices else "local"
    word, whole_ms, slice_ms = PASS if over <= MOST_OVER else FAIL, 1000 * whole_s, 1000 * slice_s
    return (
        f"{word:5} {where:12} {model} {shape[2]}: {engine} takes {whole_ms:.1f} ms, for 1/{num} {slice_ms:.1f} ms "
        f"({whole_s / slice_s:.2f} times as fast); the bound, {1000 * split['bound_s']:.1f} ms, is {over:.2f} of it"
    )


def main(argv: Sequence[str] | None = None) -> None:
    made = argparse.ArgumentParser(prog="python -m bench.slice_time", description=__doc__.splitlines()[0])
    made.add_argument("--results", type=Path, required=True, metavar="FOLDER")
    made.add_argument("--engine", default="openvino")
    made.add_argument("--rounds", type=int, default=30, metavar="N")
    arguments = made.parse_args(argv)
    for path in sorted(arguments.results.glob("*.json")):
        line = line_of(json.loads(path.read_text(encoding="utf-8")), arguments.engine, arguments.rounds)
        if line is not None:
            print(line, flush=True)


if __name__ == "__main__":
    main()
