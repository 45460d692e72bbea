"""The bars: what edgedi is to reach, as one table, and the verdict on each from the numbers of a run. Pure.

A verdict is decided by the 95 % interval of ratios paired within each round, never by a median alone: PASS where all
of the interval reaches the bar, FAIL where none of it does, UNDECIDED otherwise. Absolute ratios depend on the machine;
the share of the bound (the same plan with no communication, measured in the same run) travels better. Both are here.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from edgedi.bench.numbers import Ratio, times_as_fast

PASS, FAIL, UNDECIDED, NOT_MEASURED = "PASS", "FAIL", "UNDECIDED", "NOT MEASURED"
PLANNER, SINGLE = "oodp", "single"
LEAST_OF_ONE_DEVICE = 0.95
"""A plan never loses more than this to the best engine on one device: then it runs on one device."""
LEAST_OF_EXECUTOR = 1 / 1.1
"""The executor on one worker against the best engine on one device."""
LEAST_OF_BASELINES = 1 / 1.03
MOST_OFF = 0.15
"""Predicted against measured, the median over all runs."""
LEAST_ROUNDS = 6
"""The median lies beyond all of n measured values in one case of 2 ** (n - 1): with fewer, no interval is of 95 %."""

LOCAL = ("--local", "2", "--share", "--repeat", "5")
"""A turn is five requests, one straight after the other, of workers and of engines: the first one after a pause finds
caches cold and workers asleep, which a camera's next picture does not."""
STREAM = ("--local", "2", "--objective", "throughput")
BASELINES = ("oodp-greedy", "proportional", "equal", "ocbp", "deepthings", "aofl", "coedge")
RESNET50, VGG16 = "torchvision:resnet50", "torchvision:vgg16"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One run of edgedi-bench and the bars on its planner: speedup over the best engine, share of the bound.

    Of a stream the bars are on requests a second, against the best engine on one device, and against that engine on
    all devices at once: the bound for whoever deals whole requests.
    """

    name: str
    options: tuple[str, ...]
    model: str
    size: int = 224
    least_speedup: float
    aim: float | None = None
    least_share: float

    @property
    def streams(self) -> bool:
        """Whether it is about requests a second."""
        return self.options == STREAM

    @property
    def arguments(self) -> tuple[str, ...]:
        """What edgedi-bench is called with, besides rounds and files."""
        planners = PLANNER if self.options in (LOCAL, STREAM) else ",".join((PLANNER, *BASELINES))
        shape = f"1x3x{self.size}x{self.size}"
        return ("--model", self.model, "--input", shape, *self.options, "--planners", planners)


def _testbed(spec: str, model: str, least_speedup: float, least_share: float, aim: float | None = None) -> Case:
    name = f"{spec} {model.partition(':')[2]}"
    return Case(
        name=name, options=("--testbed", spec), model=model, least_speedup=least_speedup, least_share=least_share,
        aim=aim,
    )  # fmt: skip


def _local(model: str, size: int, least_speedup: float, aim: float | None = None) -> Case:
    name = f"local {model.partition(':')[2]} {size}"
    return Case(
        name=name, options=LOCAL, model=model, size=size, least_speedup=least_speedup, aim=aim, least_share=0.85
    )


CASES = (
    _local(VGG16, 224, 1.75, 1.9),
    _local(RESNET50, 224, 1.5, 1.7),
    _local(RESNET50, 512, 1.65, 1.85),
    _local("bench.models:fcn_resnet50", 520, 1.75, 1.9),
    _local("torchvision:mobilenet_v2", 512, 1.3, 1.6),
    _local("torchvision:mobilenet_v2", 224, LEAST_OF_ONE_DEVICE),
    _local("torchvision:efficientnet_b0", 224, LEAST_OF_ONE_DEVICE),
    Case(name="local stream resnet50 224", options=STREAM, model=RESNET50, least_speedup=1.9, least_share=0.95),
    _testbed("pi4x2@1G", VGG16, LEAST_OF_ONE_DEVICE, 0.85),
    _testbed("pi4x2@1G", RESNET50, LEAST_OF_ONE_DEVICE, 0.85),
    _testbed("pi4x4@1G", VGG16, 3.6, 0.75, 3.8),
    _testbed("pi4x4@1G", RESNET50, 3.0, 0.75, 3.5),
    _testbed("pi4x8@1G", VGG16, 6.5, 0.75),
    _testbed("pi4x8@1G", RESNET50, 4.5, 0.75),
    _testbed("pi4x4@100M", VGG16, 3.2, 0.75),
    _testbed("pi4x4@100M", RESNET50, 2.2, 0.75),
    _testbed("pi3x2_pi4x2@100M", VGG16, 0.85 * (2 / 15 + 2 / 10) * 10, 0.75),
    _testbed("mixed_links", RESNET50, LEAST_OF_ONE_DEVICE, 0.75),
    _testbed("pi4x4@50M", "torchvision:mobilenet_v2", LEAST_OF_ONE_DEVICE, 0.75),
)
"""Local cases need this machine alone; those of a testbed need ``edgedi-bench --testbed``."""


def file_stem(case: Case) -> str:
    """The name of a case's files, without their ending."""
    return "".join(letter if letter.isalnum() else "-" for letter in case.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One bar on one case: what was found, with its interval, and what it means."""

    case: str
    bar: str
    least: float
    found: Ratio | None
    reason: str = ""
    overruled: str = ""
    """The word whatever the interval says, for ``reason``."""

    @property
    def word(self) -> str:
        """PASS, FAIL, UNDECIDED, or NOT MEASURED."""
        if self.found is None:
            return NOT_MEASURED
        if self.overruled:
            return self.overruled
        if self.found.low >= self.least:
            return PASS
        return FAIL if self.found.high < self.least else UNDECIDED


def verdicts(case: Case, found: Mapping[str, Any] | None, reason: str = "") -> Iterator[Verdict]:
    """Every bar on ``case``; ``found`` is what edgedi-bench wrote as JSON, ``reason`` why there is none.

    Wrong answers are never fast: where they differ from the model's own, every bar is missed.
    """
    word, why = _overruled(found) if found else ("", "")
    for verdict in (_stream_verdicts if case.streams else _split_verdicts)(case, found, reason):
        yield replace(verdict, overruled=word, reason=verdict.reason or why)


def _overruled(found: Mapping[str, Any]) -> tuple[str, str]:
    """(word, reason) where the numbers of a run are no evidence."""
    if not found["same"]:
        return FAIL, "answers differ from the model's own"
    if found.get("ended_early"):
        return UNDECIDED, f"the run ended early: {found['ended_early']}"
    rounds = min(len(row["seconds"]) for row in found.get("rows") or found["planners"])
    return (UNDECIDED, f"{rounds} rounds, {LEAST_ROUNDS} are the least") if rounds < LEAST_ROUNDS else ("", "")


def _split_verdicts(case: Case, found: Mapping[str, Any] | None, reason: str) -> Iterator[Verdict]:
    split = _planner(found, PLANNER)
    speed = _ratio(split["times_as_fast_as_best_engine"]) if split else None
    lacking = reason if split is None else "no engine was there to compare with"
    made = {"case": case.name, "reason": lacking if speed is None else ""}
    yield Verdict(bar="times the best engine", least=case.least_speedup, found=speed, **made)
    yield Verdict(bar="never loses to one device", least=LEAST_OF_ONE_DEVICE, found=speed, **made)
    share = _ratio(split["share_of_bound"]) if split else None
    yield Verdict(case=case.name, bar="share of the bound", least=case.least_share, found=share, reason=reason)
    if case.options == LOCAL:
        single = _planner(found, SINGLE)
        alone = _ratio(single["times_as_fast_as_best_engine"]) if single else None
        yield Verdict(bar="one worker alone", least=LEAST_OF_EXECUTOR, found=alone, **made)
    else:
        baseline = _against_baselines(found, split)
        yield Verdict(
            case=case.name, bar="times the best baseline", least=LEAST_OF_BASELINES, found=baseline, reason=reason
        )


def _stream_verdicts(case: Case, found: Mapping[str, Any] | None, reason: str) -> Iterator[Verdict]:
    rows = {row["name"]: row for row in found["rows"]} if found else {}
    best = found["best_engine"] if found else None
    ours, all_at_once = rows.get("throughput"), next((rows[name] for name in rows if name.startswith(f"{best},")), None)
    lacking = reason or ("" if best else "no engine was there to compare with")
    one = _ratio(ours["times_as_fast_as_best_engine"]) if ours else None
    share = times_as_fast(ours["seconds"], all_at_once["seconds"]) if ours and all_at_once else None
    made = {"case": case.name, "reason": lacking}
    yield Verdict(bar="requests/s, one engine's", least=case.least_speedup, found=one, **made)
    yield Verdict(bar="requests/s, all engines'", least=case.least_share, found=share, **made)


def _planner(found: Mapping[str, Any] | None, name: str) -> Mapping[str, Any] | None:
    return next((split for split in found["planners"] if split["name"] == name), None) if found else None


def _ratio(values: Mapping[str, float] | None) -> Ratio | None:
    return None if values is None else Ratio(median=values["median"], low=values["low"], high=values["high"])


def _against_baselines(found: Mapping[str, Any] | None, split: Mapping[str, Any] | None) -> Ratio | None:
    """How many times as fast as the fastest baseline of the same run, round by round."""
    rivals = [rival for name in BASELINES if (rival := _planner(found, name)) is not None]
    if split is None or not rivals:
        return None
    best = min(rivals, key=lambda rival: float(rival["median_s"]))
    return times_as_fast(split["seconds"], best["seconds"])


def prediction(runs: Sequence[Mapping[str, Any]]) -> tuple[str, float]:
    """(verdict, median error) of predicted against measured times, over the planners of all runs."""
    errors = [
        abs(split["predicted_s"] / split["median_s"] - 1)
        for run in runs
        for split in run.get("planners", ())
        if split["name"] == PLANNER
    ]
    if not errors:
        return NOT_MEASURED, float("nan")
    middle = statistics.median(errors)
    return PASS if middle <= MOST_OFF else FAIL, middle


def verdict_line(verdict: Verdict) -> str:
    """A line of the table."""
    head = f"{verdict.word:12}  {verdict.case:28}  {verdict.bar:26}  at least {verdict.least:4.2f}"
    if verdict.found is None:
        return f"{head}  {verdict.reason}".rstrip()
    line = f"{head}  found {verdict.found.median:.2f} [{verdict.found.low:.2f}, {verdict.found.high:.2f}]"
    return f"{line}  {verdict.reason}" if verdict.overruled else line


def evidence(found: Mapping[str, Any]) -> Iterator[str]:
    """What the numbers of a run were measured on, as lines: command, machine, date, emulation."""
    machine = found["machine"]
    yield f"# {machine['command']}"
    yield (
        f"# {machine['date']}, {machine['processor']}, {machine['num_cores']} cores, {machine['system']}, "
        f"Python {machine['python']}, torch {machine['torch']}, edgedi {machine['edgedi']}"
    )
    if found["emulation"]:
        yield f"# {found['emulation']}"


def prediction_line(runs: Sequence[Mapping[str, Any]]) -> str:
    """A line of the table, empty where nothing was predicted: of a stream only its rate counts."""
    word, error = prediction(runs)
    if word == NOT_MEASURED:
        return ""
    return f"{word:12}  predicted against measured: median error {error:.0%}, at most {MOST_OFF:.0%}"
