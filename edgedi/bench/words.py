"""How numbers are written, on a terminal and on the page alike, and what a reader has to know besides. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from edgedi.bench.numbers import Ratio
from edgedi.bench.report import Disturbance, Report


def milliseconds(seconds: float) -> str:
    """Seconds as milliseconds, with the digits that mean something."""
    value = 1000 * seconds
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def megabytes(count: float) -> str:
    """Bytes with a unit that suits them, SI."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            value = count / size
            return f"{value:.0f} {unit}" if value >= 100 else f"{value:.1f} {unit}"
    return f"{count:.0f} B"


SHARE_REMARK = "The first worker is this process: it holds the input, and joins the answer on the same core."


def ratio_text(ratio: Ratio | None) -> str:
    """A ratio with its interval; nothing where there was no base."""
    return f"{ratio.median:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]" if ratio else ""


def percent(share: float | None) -> str:
    """A share in whole per cent; nothing where there is none."""
    return "" if share is None else f"{share:.0%}"


def ranges(numbers: Sequence[int]) -> str:
    """Rising numbers in short: 1-3, 7."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def caveats(report: Report) -> Iterator[str]:
    """What keeps the numbers from saying more than they do, a sentence each; also what the run did not come to."""
    if report.ended:
        yield ended_remark(report.ended)
    if report.machine.busy:
        yield report.machine.busy
    yield from disturbed_remarks(report.disturbed, report.num_rounds, emulated=bool(report.emulation))
    if report.emulation:
        yield from emulation_remarks(report.emulation, report.late_s)
    elif not report.pinned:
        yield "Workers are not pinned by this command: it does not own them, or there are fewer cores than threads."
    if report.settings.share and not report.emulation:
        yield SHARE_REMARK
    if report.settings.workers and report.singles:
        yield "The engines ran on this machine, the workers on theirs."
    yield from not_compared_remarks(report.not_compared)


def not_compared_remarks(not_compared: Mapping[str, str]) -> Iterator[str]:
    """Who has no part in the run, an engine or a planner, and why."""
    for name, reason in not_compared.items():
        yield f"Not compared: {name}. {reason}"


def disturbed_remarks(disturbed: Sequence[Disturbance], num_rounds: int, *, emulated: bool) -> Iterator[str]:
    """Which rounds were."""
    if disturbed:
        rounds = ranges([disturbance.round + 1 for disturbance in disturbed])
        late = ", or a device was behind its own time by more than 2 % of a request" if emulated else ""
        yield (
            f"In {len(disturbed)} of {num_rounds} rounds others had the processors (more than 2 % stolen or 5 % used "
            f"by other programs){late}; they are counted: {rounds}."
        )


def ended_remark(why: str) -> str:
    """Not to be overlooked: fewer rounds than were asked for."""
    return f"THE RUN ENDED EARLY {why}"


def emulation_remarks(emulation: str, late_s: float) -> Iterator[str]:
    """What times of emulated devices are."""
    yield (
        f"{emulation}. A device's time is its processor time here, times its slowdown; an engine's is that of the "
        "fastest device."
    )
    yield (
        f"In these rounds a device was at worst {milliseconds(late_s)} ms behind its own time, as this machine ran "
        "others; it makes up for that until it next rests, so a request was later by that at most."
    )


def computing_remarks(workers: Sequence[str], computed_by: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """What computed the layers, by contender and by worker of ``workers``: contenders of the same words share them."""
    named: dict[str, list[str]] = {}
    for contender, engines in computed_by.items():
        named.setdefault(_computing(workers, engines), []).append(contender)
    for words, contenders in named.items():
        yield f"Computed by {words}: {', '.join(contenders)}."


def _computing(workers: Sequence[str], engines: Sequence[str]) -> str:
    by_engine: dict[str, list[str]] = {}
    for worker, engine in zip(workers, engines, strict=False):  # some plans are for the first workers only
        by_engine.setdefault(engine, []).append(worker)
    if len(by_engine) == 1:
        return next(iter(by_engine))
    return " and ".join(f"{engine} ({', '.join(names)})" for engine, names in by_engine.items())


def memory_remarks(report: Report) -> Iterator[str]:
    """Each worker's peak, and who says so; and what a limit bounds, which is much less."""
    for memory in report.memory:
        peak, above = (megabytes(count) for count in (memory.peak_bytes, memory.above_bytes))
        yield (
            f"Peak memory of {memory.worker}: {peak} resident, {above} above what it had right after its imports; told "
            "by the worker itself, all planners of the run together."
        )
    if report.memory:
        yield (
            f"Memory limits bound weights and maps of one plan, here at most {megabytes(report.largest_plan_bytes)} on "
            "a worker. The rest is PyTorch, engines, other planners' sessions and, on this process's own device, the "
            "coordinator with the whole network."
        )
