"""What ``compact`` makes of pretrained networks on real images, against its bars.

    .venv/bin/python -m bench.compaction --out bench/results/FOLDER [--only WORD] [--runs N]

Needs the real networks and images (CONTRIBUTING.md, EDGEDI_DATA); ``bench/compaction_cases.py`` says which of them a
network sees and which it is scored by. The *control* of a trained network is the original, trained as long by the same
recipe on the same data: as many steps as the compact network comes from. A bar is judged by all runs of a network
together.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from statistics import fmean

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import nn

from bench.compaction_cases import CASES, HALVES, Case, Setting
from bench.pretrained import data_folder
from edgedi import compact, save
from edgedi.transforms.data import Data
from edgedi.transforms.measure import measured
from edgedi.transforms.recover.distil import distil
from edgedi.transforms.score import Score, judge_by_accuracy
from edgedi.transforms.store import Store, digest_of_model
from edgedi.transforms.task import Say

ROUNDING = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One run; pairs are (original, compact). ``control`` is what the same training made of the original."""

    case: str
    number: int
    parameters: tuple[int, int]
    macs: tuple[int, int]
    num_bytes: tuple[int, int]
    exact_macs: int
    before: Score
    after: Score
    control: Score | None
    training_steps: int
    """Of the compact network, and of the control."""
    seconds: float
    steps: str
    """The table of the compaction."""

    @property
    def macs_cut(self) -> float:
        """The share that is gone."""
        return 1 - self.macs[1] / self.macs[0]

    @property
    def parameters_cut(self) -> float:
        """The share that is gone."""
        return 1 - self.parameters[1] / self.parameters[0]

    @property
    def fall(self) -> float:
        """Of the score, against the control where there is one."""
        return (self.control or self.before).value - self.after.value


def run(case: Case, data: Path, number: int, folder: Path, budget_s: float | None = None) -> Row:
    """Compact the network, then score it; of trained ones also the control. Goes on where a killed run stopped."""
    setting = case.set_up(data, number)
    if case.trains and budget_s is not None:
        setting = replace(setting, options={**setting.options, "budget_s": budget_s})
    say = lambda line: print(f"{case.name} {number}: {line}", file=sys.stderr, flush=True)  # noqa: E731
    started_s = time.monotonic()
    place = folder / f"{case.name}-{number}"
    checkpoint = place / "checkpoint" if case.trains else None
    small = compact(setting.model, setting.example, seed=number, progress=say, checkpoint=checkpoint, **setting.options)
    # Of a run that was killed, the steps know what they took before.
    seconds = max(time.monotonic() - started_s, sum(step.seconds for step in small.compaction.steps))
    print(small.compaction, flush=True)
    save(small, place / "network", setting.example, overwrite=True)
    num_steps = small.compaction.training_steps
    control = setting.judge(control_of(setting, number, place, num_steps, say)) if case.trains else None
    before, after = (measured(network, (setting.example,))[2] for network in (setting.model, small))
    return Row(
        case=case.name, number=number, parameters=(before.parameters, after.parameters), macs=(before.macs, after.macs),
        num_bytes=(before.num_bytes, after.num_bytes),
        exact_macs=next(step.after.macs for step in small.compaction.steps if step.name == "simplify"),
        before=setting.judge(setting.model), after=setting.judge(small), control=control, training_steps=num_steps,
        seconds=seconds, steps=str(small.compaction),
    )  # fmt: skip


def control_of(setting: Setting, number: int, place: Path, num_steps: int, say: Say) -> nn.Module:
    """The original after ``num_steps`` of the same training, or as it was where its validation score is better.

    A folder in ``place`` keeps what there is so far.
    """
    if not num_steps:
        return setting.model
    options = setting.options
    store = Store(
        place / f"control-{num_steps}",
        model=digest_of_model(setting.model),
        settings=f"{num_steps} steps, seed {number}",
    )
    train = Data(options["train"], "train", labelled=True)
    judge = judge_by_accuracy(Data(options["validate"], "validate", labelled=True, ordered=True))
    trained = distil(
        compact(setting.model, setting.example, progress=False), setting.model, train, num_steps=num_steps,
        loss=options["loss"], seed=number, say=lambda line: say(f"control: {line}"), judge=judge,
        slot=store.slot("training"),
    )  # fmt: skip
    return max(trained.model, setting.model, key=lambda model: judge(model).value)


def reached(case: Case, rows: Sequence[Row]) -> bool:
    """Whether all runs of a case together hold its bar: each is small enough, and there in time, and the mean score
    fell no further."""
    return (
        all(row.macs_cut >= case.least_cut - ROUNDING for row in rows)
        and all(row.parameters_cut >= case.least_parameter_cut - ROUNDING for row in rows)
        and all(row.seconds <= case.most_s for row in rows)
        and fmean(row.fall for row in rows) <= case.most_fall + ROUNDING
    )


def table_of(rows: Sequence[Row]) -> Table:
    """A line for each run."""
    table = Table(box=box.SIMPLE_HEAD)
    columns = "network", "run", "MACs", "exact alone", "parameters", "before", "control", "after", "steps", "seconds"
    for column in columns:
        table.add_column(column, justify="left" if column == "network" else "right")
    for row in rows:
        table.add_row(
            row.case, str(row.number), f"-{row.macs_cut:.1%}", f"-{1 - row.exact_macs / row.macs[0]:.1%}",
            f"-{row.parameters_cut:.1%}", str(row.before), str(row.control or ""), str(row.after),
            f"{row.training_steps:,}", f"{row.seconds:.0f}",
        )  # fmt: skip
    return table


def verdict(case: Case, rows: Sequence[Row]) -> str:
    """A line that says whether the case's bar was held, and what it is."""
    against = "the control" if rows[0].control else "the original"
    parameters = f"parameters -{case.least_parameter_cut:.0%}, " if case.least_parameter_cut else ""
    return (
        f"{case.name}: {'PASS' if reached(case, rows) else 'FAIL'}, {-fmean(row.fall for row in rows):+.2%} against "
        f"{against} in {len(rows)} runs of at most {max(row.seconds for row in rows):.0f} s "
        f"(bar: {-case.most_fall:+.1%}, MACs -{case.least_cut:.0%}, {parameters}{case.most_s:.0f} s of two cores)"
    )


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    made = argparse.ArgumentParser(prog="python -m bench.compaction", description=__doc__.splitlines()[0])
    made.add_argument("--only", default="imagenet", metavar="WORD", help="cases whose name holds it (default "
                      "%(default)s; '' for all: hours)")  # fmt: skip
    made.add_argument("--runs", type=int, default=HALVES, metavar="N", help="of each case (default %(default)s); of "
                      "cases that train each has a seed of its own, others have one for each half")  # fmt: skip
    made.add_argument("--first", type=int, default=0, metavar="N", help="number of the first run, to go on with")
    made.add_argument("--threads", type=int, default=2, metavar="N")
    made.add_argument("--budget", type=float, metavar="SECONDS", help="of each training, instead of the bar's")
    made.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    return made.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _arguments(argv)
    cases = [case for case in CASES if arguments.only in case.name]
    if not cases:
        print(f"no case holds {arguments.only!r}; there are: {', '.join(case.name for case in CASES)}", file=sys.stderr)
        return 2
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    data = data_folder()
    rows: list[Row] = []
    verdicts: list[str] = []
    for case in cases:
        own: list[Row] = []
        for number in case.numbers(arguments.first, arguments.runs):
            own.append(run(case, data, number, arguments.out, arguments.budget))
            Console(width=170).print(table_of([*rows, *own]))
        if not own:
            print(f"{case.name}: has runs 0 to {HALVES - 1} only", file=sys.stderr)
            continue
        rows += own
        verdicts.append(verdict(case, own))
        print("\n".join(verdicts), flush=True)
        found = {
            "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"), "torch": torch.__version__,
            "processor": platform.processor() or platform.machine(), "threads": arguments.threads,
            "budget_s": arguments.budget, "verdicts": verdicts, "rows": [asdict(row) for row in rows],
        }  # fmt: skip
        (arguments.out / "compaction.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if not verdicts:
        return 2
    return 1 if any(": FAIL" in line for line in verdicts) else 0


if __name__ == "__main__":
    sys.exit(main())
