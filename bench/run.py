"""Measure the bars that this machine can decide, and say the verdicts.

    .venv/bin/python -m bench.run [--only WORD] [--rounds 100] [--out bench/results/DATE]

Every case is one run of edgedi-bench; its JSON and its page go to the folder, the verdicts to ``bars.txt`` beside them.
Nothing else should run meanwhile: each run says whether something did. Exit code 0 unless a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from bench.bars import CASES, FAIL, MOST_OFF, Case, file_stem, prediction, verdict_line, verdicts

ROUNDS = 100
"""From so many on, medians of ratios have intervals worth deciding by."""
RESULTS = Path(__file__).parent / "results"


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m bench.run", description=__doc__.splitlines()[0])
    made.add_argument("--only", default="local", metavar="WORD", help="cases whose name holds it (default %(default)s; "
                      "'' for all, testbeds too)")  # fmt: skip
    made.add_argument("--rounds", type=int, default=ROUNDS, metavar="N")
    made.add_argument("--out", type=Path, metavar="FOLDER", help="default: a folder of today's date in bench/results")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    cases = [case for case in CASES if arguments.only in case.name]
    if not cases:
        print(f"no case holds {arguments.only!r}; there are: {', '.join(case.name for case in CASES)}", file=sys.stderr)
        return 2
    folder = arguments.out or RESULTS / datetime.now(timezone.utc).strftime("%Y-%m-%d")
    folder.mkdir(parents=True, exist_ok=True)
    runs: list[dict[str, Any]] = []
    lines: list[str] = []
    for case in cases:
        found, reason = measure(case, folder, arguments.rounds)
        runs += [found] if found is not None else []
        for verdict in verdicts(case, found, reason):
            lines.append(verdict_line(verdict))
            print(lines[-1], flush=True)
    word, error = prediction(runs)
    lines.append(f"{word:12}  predicted against measured: median error {error:.0%}, at most {MOST_OFF:.0%}")
    print(lines[-1])
    (folder / "bars.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 1 if any(line.startswith(FAIL) for line in lines) else 0


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
        return json.loads(path.read_text(encoding="utf-8")), ""
    return None, last or f"edgedi-bench ended with {process.returncode}"


if __name__ == "__main__":
    sys.exit(main())
