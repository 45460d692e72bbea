"""edgedi-bench: measure a network on one worker and on several, in one interleaved run, or show the demo.

Tables go to standard output, progress and errors to standard error.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgedi.bench.settings import DEFAULT_ROUNDS, DEFAULT_STREAM, ENGINE_NAMES, Settings
from edgedi.bench.testbed.spec import Spec
from edgedi.bench.testbed.specs import find_spec, ready_specs
from edgedi.cli.ending import INTERRUPTED, ended_by_signals
from edgedi.cli.options import names, positive, shapes
from edgedi.errors import EdgediError
from edgedi.partition.planners.by_name import planners
from edgedi.partition.throughput.throughput import OBJECTIVES
from edgedi.runtime.version import software_version

if TYPE_CHECKING:
    from rich.console import Console

    from edgedi.bench.progress import Teller

DIFFERENT, WRONG_USE = 1, 2
_NOT_FOR_DEMO = (
    "input", "local", "workers", "planners", "objective", "against", "repeat", "threads", "key", "counts", "html",
    "share", "testbed",
)  # fmt: skip
_PIPED_WIDTH = 160
"""Columns of text where there is no terminal to ask."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="edgedi-bench",
        description="Measure a network on one worker, on several and in other engines, all in one interleaved run.",
        epilog="Exit code: 0, 1 where an answer is not the model's own, 2 for what prevents running or ends it early, "
        "130 after Ctrl-C.",
        allow_abbrev=False,
    )
    what = made.add_mutually_exclusive_group(required=True)
    what.add_argument("--demo", action="store_true", help="three networks on two local workers; nothing to download")
    what.add_argument("--model", metavar="NAME", help="torchvision:resnet50, or module:callable that returns a model")
    made.add_argument("--input", type=shapes, metavar="SHAPE", help="such as 1x3x224x224 (default); several by commas")
    where = made.add_mutually_exclusive_group()
    where.add_argument("--local", type=positive, metavar="N", help="start N local workers (default 2)")
    where.add_argument("--workers", type=_addresses, metavar="HOST:PORT,...", help="use workers that run already")
    made.add_argument("--share", action="store_true", default=None, help="this process computes too: as the first of "
                      "the --local workers, or besides --workers")  # fmt: skip
    where.add_argument("--testbed", type=_testbed, metavar="SPEC", help="emulate devices and links: one of "
                       f"{', '.join(ready_specs())}, or FILE.toml; SPEC@100M for links of 100 Mbit/s")  # fmt: skip
    made.add_argument(
        "--planners", type=_planners, metavar="NAME,...", help=f"of {', '.join(planners())} (default oodp)"
    )
    made.add_argument("--objective", choices=OBJECTIVES, help="latency, the time of one request (default), or "
                      "throughput, requests a second of a stream")  # fmt: skip
    made.add_argument("--against", type=_engines, metavar="NAME,...", help=f"of {', '.join(ENGINE_NAMES)}, or none "
                      "(default: those that are installed)")  # fmt: skip
    made.add_argument("--rounds", type=positive, default=DEFAULT_ROUNDS, metavar="N",
                      help="turns of every contender (default %(default)s)")  # fmt: skip
    made.add_argument("--repeat", type=positive, metavar="N", help="requests in a turn: they count as their median "
                      f"(default 1), for throughput the timed ones' mean (default {DEFAULT_STREAM})")  # fmt: skip
    made.add_argument("--threads", type=positive, metavar="N", help="threads, and cores, of each local worker and "
                      "each engine (default 1)")  # fmt: skip
    made.add_argument("--key", metavar="FILE", help="your key pair, for workers that ask for one")
    made.add_argument("--counts", type=_counts, metavar="K,...", help="run the planners with the first K workers only, "
                      "too: the curve of speedups")  # fmt: skip
    made.add_argument("--json", type=Path, metavar="FILE", help="write every number, and what it was measured on")
    made.add_argument("--html", type=Path, metavar="FILE", help="write a page with the tables and figures of the run")
    made.add_argument("--version", action="version", version=f"edgedi {software_version()}")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Run; return an exit code, see ``parser``."""
    arguments = _read(argv)
    try:
        with ended_by_signals():
            return _run(arguments)
    except KeyboardInterrupt:
        print("edgedi-bench: interrupted", file=sys.stderr)
        return INTERRUPTED
    except (EdgediError, ValueError, TypeError, OSError) as error:
        print(f"edgedi-bench: {error}", file=sys.stderr)
        return WRONG_USE


def _run(arguments: argparse.Namespace) -> int:
    _check_writable(arguments.json)
    _check_writable(arguments.html)
    if arguments.demo:
        return _demo(arguments)
    return _stream(arguments) if arguments.objective == "throughput" else _compare(arguments)


def _read(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options; those that mean nothing to the demo are refused with it."""
    made = parser()
    arguments = made.parse_args(argv)
    if arguments.demo:
        for name in _NOT_FOR_DEMO:
            if getattr(arguments, name) is not None:
                made.error(f"--demo does not take --{name}; it takes --rounds and --json")
    for name in ("counts", "html") if arguments.objective == "throughput" else ():
        if getattr(arguments, name) is not None:
            made.error(f"--objective throughput does not take --{name}; --json has its numbers")
    if arguments.testbed is not None:
        _check_testbed(made, arguments)
    return arguments


def _check_testbed(made: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    for name, reason in (("threads", "its devices have one core each"), ("key", "nobody else reaches its links")):
        if getattr(arguments, name) is not None:
            made.error(f"--testbed does not take --{name}: {reason}")


def _demo(arguments: argparse.Namespace) -> int:
    teller, console = _tellers()
    teller.say("loading torch and torchvision")
    from edgedi.bench.as_json import demo_json
    from edgedi.bench.demo import run_demo
    from edgedi.bench.tables import demo_digits, demo_remarks, demo_table

    demo = run_demo(teller, rounds=arguments.rounds)
    console.print(demo_digits(demo))
    console.print(demo_table(demo))
    for remark in demo_remarks(demo):
        console.print(remark, markup=False)
    return _end(arguments.json, lambda: demo_json(demo), same=demo.same)


def _compare(arguments: argparse.Namespace) -> int:
    teller, console = _tellers()
    teller.say("loading torch")
    from edgedi.bench.as_json import report_json
    from edgedi.bench.comparison import run_comparison
    from edgedi.bench.html import report_page
    from edgedi.bench.tables import engines_table, planners_table, remarks

    settings = _settings(arguments)
    report = run_comparison(settings, teller)
    console.print(planners_table(report))
    if report.singles:
        console.print(engines_table(report))
    for remark in remarks(report):
        console.print(remark, markup=False)
    _write(arguments.html, lambda: report_page(report, report_json(report)))
    return _early(report.ended, _end(arguments.json, lambda: report_json(report), same=report.same))


def _early(why: str, code: int) -> int:
    """The exit code of a run that ended early, or ``code`` of one that did not."""
    if why:
        print(f"edgedi-bench: ended early {why}", file=sys.stderr)
    return WRONG_USE if why else code


def _stream(arguments: argparse.Namespace) -> int:
    teller, console = _tellers()
    teller.say("loading torch")
    from edgedi.bench.stream_tables import stream_remarks, streams_json, streams_table
    from edgedi.bench.streams import run_streams

    report = run_streams(_settings(arguments), teller)
    console.print(streams_table(report))
    for remark in stream_remarks(report):
        console.print(remark, markup=False)
    return _early(report.ended, _end(arguments.json, lambda: streams_json(report), same=report.same))


def _settings(arguments: argparse.Namespace) -> Settings:
    objective = arguments.objective or "latency"
    return Settings(
        model=arguments.model,
        shapes=arguments.input or ((1, 3, 224, 224),),
        num_local=arguments.local or 2,
        workers=arguments.workers or (),
        share=bool(arguments.share) or arguments.testbed is not None,
        testbed=arguments.testbed,
        counts=arguments.counts or (),
        planners=arguments.planners or ("oodp",),
        objective=objective,
        engines=arguments.against,
        rounds=arguments.rounds,
        repeat=arguments.repeat or (DEFAULT_STREAM if objective == "throughput" else 1),
        threads=arguments.threads or 1,
        key=arguments.key,
    )


def _tellers() -> tuple[Teller, Console]:
    from rich.console import Console

    from edgedi.bench.progress import Teller

    width = None if sys.stdout.isatty() else _PIPED_WIDTH
    return Teller(), Console(width=width, highlight=False)


def _check_writable(path: Path | None) -> None:
    """``OSError`` before minutes of measuring, not after."""
    if path is not None:
        was_there = path.exists()
        path.touch()
        if not was_there:
            path.unlink()


def _write(path: Path | None, text: Callable[[], str]) -> None:
    if path is not None:
        path.write_text(text() + "\n", encoding="utf-8")


def _end(path: Path | None, text: Callable[[], str], *, same: bool) -> int:
    _write(path, text)
    if not same:
        print("edgedi-bench: an answer differs from the model's own, see the column 'difference'", file=sys.stderr)
        return DIFFERENT
    return 0


# --- reading options --------------------------------------------------------------------------------------------------


def _counts(text: str) -> tuple[int, ...]:
    return tuple(sorted({positive(part) for part in text.split(",")}))


def _addresses(text: str) -> tuple[str, ...]:
    parts = tuple(part.strip() for part in text.split(","))
    if not all(":" in part for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of host:port or host:port#key, joined by commas")
    return parts


def _testbed(text: str) -> Spec:
    try:
        return find_spec(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _planners(text: str) -> tuple[str, ...]:
    return names(text, "planner", planners())


def _engines(text: str) -> tuple[str, ...]:
    return () if text == "none" else names(text, "engine", ENGINE_NAMES)


if __name__ == "__main__":
    sys.exit(main())
