"""What SIGINT and SIGTERM do to a command that has something to clean up."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
INTERRUPTED = 130
"""The exit code of a command that a signal ended, as shells have it."""
PATIENCE_S = 10.0
"""How long cleaning up is left alone: a terminal and a supervisor may both send, and people press Ctrl-C twice."""


@contextlib.contextmanager
def ended_by_signals(clock: Callable[[], float] = time.monotonic) -> Iterator[None]:
    """SIGINT and SIGTERM raise ``KeyboardInterrupt``, once: what follows within ``PATIENCE_S`` does nothing.

    After that time they raise again, for a clean-up that hangs, or an exception raised where Python ignores it. Where
    the body was interrupted, the process is about to end and it stays like that, so that its exit code does too. A
    signal that whoever started the process has it ignore, as a shell does for what runs in the background, stays so.
    """
    ended_s: float | None = None

    def end(_number: int, _frame: object) -> None:
        nonlocal ended_s
        now_s = clock()
        if ended_s is not None and now_s < ended_s + PATIENCE_S:
            return
        ended_s = now_s
        raise KeyboardInterrupt

    heeded = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, end) for number in heeded}
    try:
        yield
    finally:
        for number, handler in before.items() if ended_s is None else ():
            signal.signal(number, handler)
