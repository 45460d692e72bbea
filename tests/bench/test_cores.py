"""Who runs on which cores."""

from __future__ import annotations

import os

import pytest
import torch

from edgedi.bench import cores
from edgedi.bench.settings import Settings


def test_each_gets_cores_of_its_own_or_nobody_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "usable_cores", lambda: [2, 3, 5])
    assert cores.deal(3, 1) == [[2], [3], [5]]
    assert cores.deal(1, 2) == [[2, 3]]
    assert cores.deal(2, 2) == [[], []]


def test_as_the_first_worker_this_process_has_its_cores_and_threads() -> None:
    cores_before, threads_before = os.sched_getaffinity(0), torch.get_num_threads()
    with cores.as_first_of(1, 1):
        assert os.sched_getaffinity(0) == {min(cores_before)}
        assert torch.get_num_threads() == 1
    assert os.sched_getaffinity(0) == cores_before
    assert torch.get_num_threads() == threads_before


def test_this_process_counts_as_a_worker() -> None:
    assert Settings(model="m", num_local=3, share=True).num_workers == 3
    assert Settings(model="m", num_local=3).num_workers == 3
    assert Settings(model="m", workers=("a:1", "b:2"), share=True).num_workers == 3
    with pytest.raises(ValueError, match="there are 2 workers"):
        Settings(model="m", num_local=2, share=True, counts=(3,))
