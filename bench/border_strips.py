"""What it would cost to compute the rows that others wait for first, and the rest while they travel.

    .venv/bin/python -m bench.border_strips --results bench/results/FOLDER [--rounds 15]

For the ``oodp`` plan of every run of local workers in the folder: the layers of worker 0 whose border rows are sent,
each of them whole, and the border rows and the rest as two calls; all in turn, in PyTorch on one thread with warm
caches, the least of all rounds. What that costs more is to be held against what it could hide at most: the waiting in
the timeline of the run's page. A layer within a chain that an engine computes would have to leave the chain besides,
which is not counted here.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from bench.bars import CASES, LOCAL, PLANNER, Case, file_stem
from bench.layer_calls import Call, layer_calls
from edgedi.bench.networks import load_network
from edgedi.partition.capture.capture import capture_model
from edgedi.partition.graph.geometry import Interval, Region
from edgedi.partition.graph.graph import LayerGraph
from edgedi.partition.graph.operators import needs
from edgedi.partition.plan.lowering import lower
from edgedi.partition.plan.plan import HOME, Plan
from edgedi.partition.plan.program import Piece, Program, ProgramSet, Run, Send
from edgedi.runtime.execution.tensors import inference

ROWS = 2
WORKER = 0
WARM = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Border:
    """A layer's part whole, and the same in two: what is sent, and the rest."""

    whole: Run
    strip: Run
    rest: Run


def borders(programs: ProgramSet) -> Iterator[Border]:
    """Of every run of worker 0 that has border rows sent to another worker; the first send of each."""
    graph, program = programs.graph, programs.programs[WORKER]
    runs = {instruction.piece: instruction for instruction in program.instructions if isinstance(instruction, Run)}
    for send in program.instructions:
        if not isinstance(send, Send) or send.target == HOME or send.piece.dim != ROWS:
            continue
        whole = runs.pop(send.held, None)
        if whole is not None and len(send.piece.interval) < len(send.held.interval):
            strip, held = send.piece.interval, send.held.interval
            above = held.start < strip.start
            rest = Interval(held.start, strip.start) if above else Interval(strip.stop, held.stop)
            yield Border(whole=whole, strip=rows_of(whole, strip, graph), rest=rows_of(whole, rest, graph))


def rows_of(whole: Run, rows: Interval, graph: LayerGraph) -> Run:
    """The same layer for ``rows`` of its output alone."""
    layer = graph.layers[graph.position[whole.piece.tensor]]
    parts = needs(layer, graph.input_shapes(layer), Region(ROWS, rows))
    assert parts is not None, "what is split along rows is so in parts"
    inputs = tuple(
        Piece(name, part.dim, part.interval) if isinstance(part, Region) else Piece(name)
        for name, part in zip(layer.inputs, parts, strict=True)
    )
    return Run(Piece(whole.piece.tensor, ROWS, rows), inputs)


def seconds_of(calls: Sequence[Call], rounds: int, clock: Callable[[], float] = time.perf_counter) -> list[float]:
    """The least of each call, taken in turn."""
    taken: list[list[float]] = [[] for _ in calls]
    with inference():
        for _ in range(WARM + rounds):
            for call, seconds in zip(calls, taken, strict=True):
                started = clock()
                call()
                seconds.append(clock() - started)
    return [min(seconds[WARM:]) for seconds in taken]


def row_of(case: Case, path: Path, rounds: int) -> tuple[str, ...]:
    """A line of the table, in milliseconds; empty where no rows are exchanged."""
    values = json.loads(path.read_text(encoding="utf-8"))
    captured = capture_model(load_network(case.model), (torch.randn(1, 3, case.size, case.size),))
    text = next(split["plan"] for split in values["planners"] if split["name"] == PLANNER)
    found = list(borders(lower(Plan.parse(text, graph_digest=captured.graph.digest), captured.graph)))
    if not found:
        return ()
    runs = tuple(run for border in found for run in (border.whole, border.strip, border.rest))
    program = Program(participant=WORKER, instructions=runs)
    seconds = seconds_of(layer_calls(program, captured), rounds)
    whole_ms, parts_ms = 1000 * sum(seconds[::3]), 1000 * (sum(seconds[1::3]) + sum(seconds[2::3]))
    return case.name, str(len(found)), f"{whole_ms:.2f}", f"{parts_ms:.2f}", f"{parts_ms - whole_ms:+.2f}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.border_strips", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--results", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--rounds", type=int, default=15, metavar="N")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    table = Table("run", "layers", "whole", "in two", "more", box=box.SIMPLE_HEAVY, title="milliseconds, worker 0")
    paths = [(case, arguments.results / f"{file_stem(case)}.json") for case in CASES if case.options == LOCAL]
    for case, path in paths:
        if path.exists() and (row := row_of(case, path, arguments.rounds)):
            table.add_row(*row)
    if not table.row_count:
        parser.error(f"--results {arguments.results} holds no run of local workers")
    Console(width=120).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
