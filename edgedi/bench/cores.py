"""Which cores the contenders run on: a worker and an engine get cores of their own, as many as they have threads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from edgedi.runtime.worker.local_workers import LocalWorkers


def usable_cores() -> list[int]:
    """The cores that this process may use; empty where the system does not tell."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def deal(count: int, threads: int) -> list[list[int]]:
    """``threads`` cores for each of ``count`` workers; empty lists, nobody pinned, where there are too few."""
    cores = usable_cores()
    if len(cores) < count * threads:
        return [[] for _ in range(count)]
    return [cores[index * threads : (index + 1) * threads] for index in range(count)]


def start_workers(count: int, threads: int) -> LocalWorkers:
    """``count`` local workers of ``threads`` threads, pinned where the cores suffice."""
    return LocalWorkers(count, threads=threads, cores=deal(count, threads))


def start_all_but_first(count: int, threads: int) -> LocalWorkers:
    """The others of ``count`` workers, at least two, of which the first is this process."""
    return LocalWorkers(count - 1, threads=threads, cores=deal(count, threads)[1:])


@contextmanager
def as_first_of(count: int, threads: int) -> Iterator[None]:
    """Within it this thread, and those that it starts, have the cores and torch's threads of the first worker."""
    before = usable_cores()
    mine, threads_before = deal(count, threads)[0], torch.get_num_threads()
    torch.set_num_threads(threads)
    if mine:
        os.sched_setaffinity(0, mine)
    try:
        yield
    finally:
        torch.set_num_threads(threads_before)
        if mine:
            os.sched_setaffinity(0, before)
