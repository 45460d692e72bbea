"""Measure the bars that this machine can decide, and say the verdicts.

    .venv/bin/python -m bench.run [--only WORD] [--rounds 100] [--out bench/results/DATE]
    .venv/bin/python -m bench.run --recorded FOLDER ...

Every case is one run of edgedi-bench; its JSON and its page go to the folder, the verdicts to ``bars.txt`` beside them.
Nothing else should run meanwhile: each run says whether something did. ``--recorded`` measures nothing: it judges what
earlier runs have written, each folder in its ``bars.txt`` and all of them together. Exit code 0 unless a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from bench.bars import CASES, FAIL, Case, evidence, file_stem, prediction_line, verdict_line, verdicts

ROUNDS = 100
"""From so many on, medians of ratios have intervals worth deciding by."""
RESULTS = Path(__file__).parent / "results"

Run = tuple[Case, dict[str, Any] | None, str]
"""A case, what edgedi-bench found, and why it found nothing."""


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m bench.run", description=__doc__.splitlines()[0])
    made.add_argument("--only", metavar="WORD", help="cases whose name holds it (default local, of --recorded all; "
                      "'' for all, testbeds too)")  # fmt: skip
    made.add_argument("--rounds", type=int, default=ROUNDS, metavar="N")
    made.add_argument("--out", type=Path, metavar="FOLDER", help="default: a folder of today's date in bench/results")
    made.add_argument("--recorded", type=Path, nargs="+", metavar="FOLDER", help="judge the runs that these hold")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    word = arguments.only if arguments.only is not None else "" if arguments.recorded else "local"
    cases = [case for case in CASES if word in case.name]
    if not cases:
        print(f"no case holds {word!r}; there are: {', '.join(case.name for case in CASES)}", file=sys.stderr)
        return 2
    if arguments.recorded:
        for folder in arguments.recorded:
            write_bars(folder)
        return judge((case, read(path), "") for path, case in recorded(cases, arguments.recorded))
    folder = arguments.out or RESULTS / datetime.now(timezone.utc).strftime("%Y-%m-%d")
    folder.mkdir(parents=True, exist_ok=True)
    return judge((case, *measure(case, folder, arguments.rounds)) for case in cases)


def judge(runs: Iterable[Run]) -> int:
    """Prints the verdicts, run by run; 1 where a bar is missed."""
    judged, missed = [], False
    for case, found, reason in runs:
        judged += [found] if found is not None else []
        for verdict in verdicts(case, found, reason):
            print(verdict_line(verdict), flush=True)
            missed |= verdict.word == FAIL
    last = prediction_line(judged)
    print(last)
    return int(missed or last.startswith(FAIL))


def recorded(cases: Sequence[Case], folders: Iterable[Path]) -> Iterator[tuple[Path, Case]]:
    """What the folders hold of the cases, by the names of the files."""
    for folder in folders:
        found = [(path, case) for case in cases if (path := folder / f"{file_stem(case)}.json").exists()]
        if not found:
            print(f"{folder} holds no run of {', '.join(case.name for case in cases)}", file=sys.stderr)
        yield from found


def read(path: Path) -> dict[str, Any]:
    """What edgedi-bench wrote."""
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return values


def write_bars(folder: Path) -> None:
    """``bars.txt``: every run that the folder holds, what it was measured on, and the verdicts."""
    runs = [(case, read(path)) for path, case in recorded(CASES, [folder])]
    if not runs:
        return
    lines = [line for case, found in runs for line in (*evidence(found), *map(verdict_line, verdicts(case, found)))]
    lines.append(prediction_line([found for _, found in runs]))
    (folder / "bars.txt").write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


def measure(case: Case, folder: Path, rounds: int) -> tuple[dict[str, Any] | None, str]:
    """What edgedi-bench found, or why it found nothing."""
    stem = file_stem(case)
    near = Path(os.path.relpath(folder))  # commands stand in the results, and places of this machine are nobody's
    path, page = near / f"{stem}.json", near / f"{stem}.html"
    path.unlink(missing_ok=True)
    files = ("--rounds", str(rounds), "--json", str(path), *(() if case.streams else ("--html", str(page))))
    command = [sys.executable, "-m", "edgedi.cli.bench", *case.arguments, *files]
    last = ""
    with tempfile.TemporaryDirectory() as cache:  # profiles measured in this run, not on another day
        environment = {**os.environ, "XDG_CACHE_HOME": cache}
        with subprocess.Popen(
            command, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment
        ) as process:
            for line in process.stderr or ():
                sys.stderr.write(line)  # its progress is ours
                last = line.strip()
    if path.exists():
        write_bars(folder)
        return read(path), ""
    return None, last or f"edgedi-bench ended with {process.returncode}"


if __name__ == "__main__":
    sys.exit(main())
