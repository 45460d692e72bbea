"""Which cores the contenders run on: a worker and an engine get cores of their own, as many as they have threads."""

from __future__ import annotations

import os

from edgedi.runtime.local_workers import LocalWorkers


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
