"""A run that the system ends in the middle of its training, without a word, goes on from its folder."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import torch

from tests.transforms.recover import killed_run
from tests.transforms.recover.killed_run import STEPS, TOLD
from tests.transforms.recover.toy import same_weights

ROOT = Path(__file__).parents[3]
DEADLINE_S = 120.0


def kill_while_it_trains(folder: Path) -> list[str]:
    """A process with ``folder`` as its checkpoint, killed as soon as it says that six steps are done; what it said."""
    command = [sys.executable, "-m", killed_run.__name__, str(folder), str(torch.get_num_threads())]
    lines: list[str] = []
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        late = threading.Timer(DEADLINE_S, process.kill)
        late.start()
        assert process.stdout is not None
        try:
            for line in process.stdout:
                lines.append(line)
                if line.startswith(TOLD.format(6)):
                    break
        finally:
            late.cancel()
            process.kill()
    assert process.returncode == -signal.SIGKILL
    return lines


def test_killed_while_it_trains_it_ends_with_the_weights_of_one_that_was_not(tmp_path: Path):
    said = kill_while_it_trains(tmp_path)
    assert said[-1].startswith(TOLD.format(6))
    kept = {path.name for path in tmp_path.glob("*.pt")}
    assert kept == {"finished.pt", "1-recover-begun.pt", "1-recover-training.pt"}
    lines: list[str] = []
    found, expected = killed_run.run(tmp_path, lines.append), killed_run.run()
    assert same_weights(found, expected)
    assert found.compaction.training_steps == expected.compaction.training_steps == STEPS
    assert lines[0] == "simplify: done before, from the checkpoint"
    assert [line for line in lines if line.startswith(TOLD.format(3))] == []
    assert any(line.startswith(TOLD.format(15)) for line in lines)
    assert {path.name for path in tmp_path.iterdir()} == {"finished.pt"}
