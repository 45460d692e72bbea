"""A loaded program in which something happens around every RUN and JOIN: others run the same one as it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from edgedi.partition.plan.program import Send
from edgedi.runtime.execution.executor import LoadedProgram

Kernel = Callable[..., Any]


class Changed(LoadedProgram):
    """The same program with the kernel of every RUN and JOIN changed; ``change`` gets the instruction's number."""

    def __init__(self, loaded: LoadedProgram, change: Callable[[int, Kernel], Kernel]) -> None:
        vars(self).update(vars(loaded))
        self._steps = tuple(
            step
            if step.kernel is None or isinstance(step.instruction, Send)
            else replace(step, kernel=change(number, step.kernel))
            for number, step in enumerate(loaded.steps)
        )
