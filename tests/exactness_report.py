"""Writes docs/exactness.md: every network x size x number of workers, how far from the truth, and how much ran split.

    python -m tests.exactness_report [--only NAME ...] [--workers 1 2 3 5] [--minutes 60] [--append]
                                     [--output docs/exactness.md]

Networks in their families' order of size, the smallest of each family first; what the minutes did not suffice for is
listed as not run. The file is written anew after every network, so that an interrupted run leaves what it had;
``--append`` goes on from there: it runs the networks that the file has no rows of, and keeps its rows and commands.
"""

from __future__ import annotations

import argparse
import copy
import gc
import itertools
import platform
import random
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torchvision

from edgedi.errors import EdgediError
from edgedi.partition.capture.capture import capture_model
from edgedi.partition.plan.lowering import lower
from edgedi.partition.plan.simulate import split_flops
from edgedi.runtime.execution.reference import InProcess
from tests.exactness import TOLERANCE, cast, check_argmax, own_rounding, whole_maps, worst_layer, worst_output
from tests.networks import FAMILIES, ODD_SIZE, TRANSFORMERS, build, family_of, noise_for, sizes
from tests.plans import axis_plan, random_plan

ROOT = Path(__file__).parent.parent
REFUSED = "## Refused"
OPAQUE = "## Layers outside the operator table, run by the coordinator"
CONVOLUTIONS = frozenset({"conv", "conv_transpose"})
MIXED = "3, mixed"
LEAST_SPLIT = 0.95
"""Share of a CNN's convolution FLOPs that two workers or more run split by rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One case. Differences are relative to the largest value of the map."""

    name: str
    size: tuple[int, int]
    workers: str
    layer: float
    output: float
    own: float
    split: float
    close: float
    passes: bool

    def __str__(self) -> str:
        verdict = "" if self.passes else " **beyond its limit**"
        cells = (self.name, "x".join(map(str, self.size)), self.workers, f"{self.output:.1e}", f"{self.own:.1e}")
        more = (f"{self.layer:.1e}{verdict}", f"{100 * self.split:.1f} %", f"{100 * self.close:.2f} %")
        return "| " + " | ".join(map(str, (*cells, *more))) + " |"


@dataclass(slots=True)
class Report:
    """What was found so far."""

    commands: list[str]
    kept: list[str] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)
    not_run: list[str] = field(default_factory=list)
    opaque: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        versions = (
            f"torch {torch.__version__}, torchvision {torchvision.__version__}, Python {platform.python_version()}"
        )
        refused = [f"- {name}: {reason}" for name, reason in self.refused] or ["None."]
        opaque = [f"- {name}: {count} layers" for name, count in self.opaque.items()] or ["None."]
        lines = [*_head(self.commands, versions), *self.kept, *map(str, self.rows), "", REFUSED, "", *refused, ""]
        lines += [OPAQUE, "", *opaque, ""]
        return "\n".join([*lines, "## Not run", "", ", ".join(self.not_run) or "None.", ""])


def _head(commands: list[str], versions: str) -> list[str]:
    return [
        "# Exactness",
        "",
        *(f"    {command}" for command in commands),
        "",
        f"wrote this, last on {time.strftime('%Y-%m-%d')}, with {versions}, {platform.machine()}; do not edit by hand.",
        "Weights are random and calibrated (`tests/networks.py`), inputs are noise of one seed.",
        "Rows are split evenly, in segments of 1 + workers layers; *mixed* is a plan drawn at random, segments of any",
        "length, axis and division. All in one process (`InProcess`): the programs are those that workers run, the",
        "kernels those that they run without an engine; `tests/runtime/execution/test_groups.py` compares engines'.",
        "Every number is relative to the largest magnitude of its map.",
        "",
        "- **output**: largest difference of the split float32 run from the model in float64;",
        "- **model**: the same of the model itself in float32, unsplit, eager;",
        "- **layer**: largest difference of any piece that any worker computed from the same part of a float64 run;",
        f"  its limit is {TOLERANCE['float32']:.0e}, or thrice the unsplit float32 graph's own where that is more;",
        "- **split**: share of the convolution FLOPs that ran on two workers or more;",
        f"  of a CNN split by rows at least {LEAST_SPLIT:.0%};",
        "- **close**: share of classes not compared, for their two largest values lie within twice the limit.",
        "",
        "| network | input | workers | output | model | layer | split | close |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]


def cases(report: Report, name: str, workers: Iterable[int]) -> Iterator[Row]:
    """The rows of one network."""
    for size in sizes(name):
        model, x = build(name, size), noise_for(name, size)
        with torch.inference_mode():
            truth = copy.deepcopy(model).double()(x.double())
            own_output = worst_output(model(x), truth)
        capture = capture_model(model, x)
        count = sum(layer.op == "opaque" for layer in capture.graph.layers)
        if count:
            report.opaque[name] = count
        inputs = capture.flatten((x,))
        exact = whole_maps(cast(capture, torch.float64), {key: value.double() for key, value in inputs.items()})
        own = own_rounding(capture, inputs, exact)
        limit = max(TOLERANCE["float32"], 3 * own_output)
        plans = {str(count): axis_plan(capture.graph, count, "rows", depth=1 + count) for count in workers}
        if size == ODD_SIZE:
            plans[MIXED] = random_plan(capture.graph, 3, random.Random(name))
        for title, plan in plans.items():
            programs = lower(plan, capture.graph)
            layer = worst_layer(capture, plan, inputs, exact, fast=True, own=own)
            y = InProcess(capture, programs)(x)
            output = worst_output(y, truth)
            share = split_flops(capture.graph, programs, CONVOLUTIONS)
            enough = title in ("1", MIXED) or family_of(name) in TRANSFORMERS or share >= LEAST_SPLIT
            yield Row(
                name=name,
                size=size,
                workers=title,
                layer=layer.value,
                output=output,
                own=own_output,
                split=share,
                close=check_argmax(y, truth, limit),
                passes=layer.passes and output <= limit and enough,
            )


def _listed(lines: list[str], heading: str) -> list[tuple[str, str, str]]:
    """``name``, ``": "`` and what is said of it, of every item under ``heading``."""
    rest = itertools.dropwhile(lambda line: line != heading, lines)
    section = itertools.takewhile(lambda line: not line.startswith("## "), itertools.islice(rest, 1, None))
    return [line.removeprefix("- ").partition(": ") for line in section if line.startswith("- ")]


def main(arguments: list[str] | None = None) -> int:
    """Run, write, and say whether every case passed."""
    parser = argparse.ArgumentParser(prog="python -m tests.exactness_report", description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=None, help="these networks only")
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2, 3, 5])
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no network after this long")
    parser.add_argument("--append", action="store_true", help="run what the file has no rows of, keep its rows")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "exactness.md")
    options = parser.parse_args(arguments)
    command = " ".join(["python -m tests.exactness_report", *(sys.argv[1:] if arguments is None else arguments)])
    before = options.output.read_text(encoding="utf-8").splitlines() if options.append else []
    kept = [line for line in before if line.startswith("| ") and "| network |" not in line]
    report = Report(
        commands=[*(line.strip() for line in before if line.startswith("    ")), command],
        kept=kept,
        refused=[(name, reason) for name, _, reason in _listed(before, REFUSED)],
        opaque={name: int(count.split()[0]) for name, _, count in _listed(before, OPAQUE)},
    )
    began, known = time.monotonic(), {line.split(" | ")[0].removeprefix("| ") for line in kept}
    known |= {name for name, _ in report.refused}
    ranks = itertools.chain.from_iterable(itertools.zip_longest(*FAMILIES.values()))
    names = options.only or [name for name in ranks if name and name not in known]
    for index, name in enumerate(names):
        report.not_run = names[index:]
        if time.monotonic() - began > 60 * options.minutes:
            break
        options.output.write_text(str(report), encoding="utf-8")
        try:
            for row in cases(report, name, options.workers):
                report.rows.append(row)
                print(row, flush=True)
        except EdgediError as error:
            report.refused.append((name, str(error).splitlines()[0]))
            print(f"{name} refused: {error}", flush=True)
        report.not_run = names[index + 1 :]
        gc.collect()
    options.output.write_text(str(report), encoding="utf-8")
    return 1 if "beyond its limit**" in str(report) else 0


if __name__ == "__main__":
    sys.exit(main())
