"""The training that a step of ``compact`` asks for: for the time that it is given, or a number of steps without."""

from __future__ import annotations

from torch import nn

from edgedi.transforms.recover.distil import Trained, distil
from edgedi.transforms.store import Slot
from edgedi.transforms.task import Budget, Task

STEPS_WITHOUT_BUDGET = 1000
"""So many steps has a training where ``budget_s`` is not given."""
NOT_JUDGED = "nothing tells whether training helped: pass validate or calibration"
"""What the report says of a training without a judge."""


def train(student: nn.Module, task: Task, budget: Budget, slot: Slot, step: str) -> Trained:
    """``student`` trained towards the original's answers, with time left to judge it. ``step`` says how it goes."""
    endless, data = budget.seconds is None, task.train or task.calibration
    assert data is not None  # the arguments were checked
    return distil(
        student, task.original, data, num_steps=STEPS_WITHOUT_BUDGET if endless else None,
        budget=None if endless else budget.but(task.judge_s), loss=task.loss, seed=task.seed, judge=task.judge,
        judge_s=task.judge_s, slot=slot, say=lambda line: task.say(f"{step}: {line}"),
    )  # fmt: skip
