"""edgedi-bench: measure a network on one worker and on several, in one interleaved run, or show the demo."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import TYPE_CHECKING

from edgedi.errors import EdgediError
from edgedi.runtime.version import software_version

if TYPE_CHECKING:
    from edgedi.bench.progress import Teller

INTERRUPTED = 130


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="edgedi-bench", description="Measure networks on one worker and on several.")
    made.add_argument("--demo", action="store_true", help="three networks on two local workers, nothing to download")
    made.add_argument("--version", action="version", version=f"edgedi {software_version()}")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Run; return 0, 1 where an answer was not the model's own, 2 for what prevents running, 130 after Ctrl-C."""
    arguments = parser().parse_args(argv)
    if not arguments.demo:
        parser().error("give --demo")
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return _run(arguments)
    except KeyboardInterrupt:
        print("edgedi-bench: interrupted", file=sys.stderr)
        return INTERRUPTED
    except (EdgediError, ValueError, OSError) as error:
        print(f"edgedi-bench: {error}", file=sys.stderr)
        return 2


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _run(arguments: argparse.Namespace) -> int:
    from edgedi.bench.progress import Teller

    return _demo(Teller())


def _demo(teller: Teller) -> int:
    from rich.console import Console

    teller.say("loading torch and torchvision")
    from edgedi.bench.demo import run_demo
    from edgedi.bench.tables import demo_digits, demo_table

    demo = run_demo(teller)
    console = Console()
    console.print(demo_digits(demo))
    console.print(demo_table(demo))
    if not demo.pinned:
        console.print("Fewer cores than workers here: the speedup says nothing.")
    if not demo.same:
        print("edgedi-bench: an answer differs from the model's own; please report this", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
