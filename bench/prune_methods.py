"""The two ways of ``compact`` to prune, side by side: the published rule by L1 norms, and ours with reconstruction.

    .venv/bin/python -m bench.prune_methods [--network resnet20] [--tolerances 0.005,0.01] --out bench/results/FOLDER

Nothing is trained. Both are given the same calibration and validation images (CIFAR-10's, out of the training images),
and may lose as much of the validation accuracy; the test images are looked at once, at the end. Needs the real networks
and images (CONTRIBUTING.md, EDGEDI_DATA).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from bench.compaction_cases import CASES, Setting
from bench.pretrained import data_folder
from edgedi import compact
from edgedi.transforms.arguments import METHODS
from edgedi.transforms.measure import measured
from edgedi.transforms.score import Score

FEWER = 4
"""Every so many batches of the validation images are used: the published rule looks at them once for each filter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One method at one tolerance."""

    method: str
    tolerance: float
    macs: float
    """Share of the original's."""
    parameters: float
    """Share of the original's."""
    validation: Score
    test: Score
    networks: int
    """How many were made and judged."""
    seconds: float


def run(setting: Setting, method: str, tolerance: float) -> Row:
    """Prune by ``method`` as far as ``tolerance`` allows."""
    started_s = time.monotonic()
    small = compact(
        setting.model, setting.example, steps=("simplify", "prune"), method=method, tolerance=tolerance,
        calibration=setting.options["calibration"], validate=setting.options["validate"][::FEWER], progress=False,
    )  # fmt: skip
    seconds = time.monotonic() - started_s
    before, after = (measured(network, (setting.example,))[2] for network in (setting.model, small))
    validation = small.compaction.steps[-1].score
    assert validation is not None  # of labelled images
    return Row(
        method=method, tolerance=tolerance, macs=after.macs / before.macs,
        parameters=after.parameters / before.parameters, validation=validation, test=setting.judge(small),
        networks=sum(point.step == "prune" for point in small.compaction.curve) - 1, seconds=seconds,
    )  # fmt: skip


def table_of(rows: Sequence[Row], original: Score) -> Table:
    """A line for each row."""
    table = Table(box=box.SIMPLE_HEAD, title=f"test accuracy of the original: {original}")
    for column in ("may lose", "method", "MACs", "parameters", "validation", "test", "networks judged", "seconds"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for row in rows:
        table.add_row(
            f"{row.tolerance:.1%}", row.method, f"-{1 - row.macs:.1%}", f"-{1 - row.parameters:.1%}",
            str(row.validation), str(row.test), str(row.networks), f"{row.seconds:.0f}",
        )  # fmt: skip
    return table


def _shares(text: str) -> tuple[float, ...]:
    with contextlib.suppress(ValueError):
        found = tuple(map(float, text.split(",")))
        if all(0 <= share < 1 for share in found):
            return found
    raise argparse.ArgumentTypeError(f"{text!r}: give shares of 0 or more and less than 1, as in 0.005,0.01")


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    made = argparse.ArgumentParser(prog="python -m bench.prune_methods", description=__doc__.splitlines()[0])
    made.add_argument("--network", default="resnet20", choices=("resnet20", "resnet56"))
    made.add_argument(
        "--tolerances", type=_shares, default="0.005,0.01,0.02", metavar="SHARE,...", help="default: %(default)s"
    )
    made.add_argument("--threads", type=int, default=2, metavar="N")
    made.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    return made.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _arguments(argv)
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    case = next(case for case in CASES if case.name == f"{arguments.network}-cifar")
    setting = case.set_up(data_folder(), 0)
    original, rows = setting.judge(setting.model), list[Row]()
    for tolerance in arguments.tolerances:
        for method in METHODS:
            rows.append(run(setting, method, tolerance))
            Console(width=130).print(table_of(rows, original))
            found = {
                "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"), "network": case.name,
                "torch": torch.__version__, "processor": platform.processor() or platform.machine(),
                "threads": arguments.threads, "original": asdict(original), "rows": [asdict(row) for row in rows],
            }  # fmt: skip
            (arguments.out / "prune_methods.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
