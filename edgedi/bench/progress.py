"""What is going on, said all the while: a bar on a terminal, plain lines anywhere else. Always on standard error."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_LINE_EVERY_S = 5.0


class Teller:
    """Says steps, with the seconds since the start, and counts rounds."""

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console or Console(stderr=True, highlight=False)
        self._clock = clock
        self._started_s = clock()

    @property
    def elapsed_s(self) -> float:
        """Seconds since this object was made."""
        return self._clock() - self._started_s

    def say(self, text: str) -> None:
        """One line: a step begins."""
        self._console.print(f"{self.elapsed_s:6.1f} s  {text}", markup=False, soft_wrap=True)

    def about(self, subject: str) -> Callable[[str], None]:
        """A ``say`` whose every line begins with the subject."""
        return lambda text: self.say(f"{subject}: {text}")

    def rounds(self, count: int, what: str) -> Iterator[int]:
        """0 to ``count`` - 1. Progress is shown between two of them: nothing is drawn while one is measured."""
        drawn = self._console.is_terminal and not self._console.is_dumb_terminal
        return self._bar(count, what) if drawn else self._lines(count, what)

    def _bar(self, count: int, what: str) -> Iterator[int]:
        columns = (TextColumn("          {task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self._console, auto_refresh=False, transient=True) as progress:
            task = progress.add_task(what, total=count)
            for index in range(count):
                yield index
                progress.update(task, advance=1, refresh=True)

    def _lines(self, count: int, what: str) -> Iterator[int]:
        said_s = self._clock()
        self.say(f"{what}: {count} rounds")
        for index in range(count):
            yield index
            if self._clock() - said_s >= _LINE_EVERY_S:
                said_s = self._clock()
                self.say(f"{what}: {index + 1} of {count}")
