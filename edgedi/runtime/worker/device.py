"""Facts about the device under a process: what it is called, how much memory it has used."""

from __future__ import annotations

import hashlib
import platform
import resource
import sys
from pathlib import Path


def fingerprint(
    device: str,
    threads: int,
    engine: str,
    slowdown: float = 1.0,
    memory_limit_bytes: int | None = None,
    *,
    warm: bool = False,
) -> str:
    """A short name of processor, features, device kind, threads, engine, memory limit and emulation: what profiles are
    kept under. ``warm`` says that an emulated device is measured at calm moments."""
    features = ""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
        named = {key.strip(): value.strip() for key, value in lines.items()}
        model = named.get("model name") or named.get("Model") or model
        features = named.get("flags") or named.get("Features") or ""
    digest = hashlib.sha256(f"{model}{features}{platform.machine()}".encode()).hexdigest()[:12]
    words = "-".join(model.split())[:48].replace("/", "-")
    emulated = "" if slowdown == 1 else f"-slowed{slowdown:g}x{'-warm' * warm}"
    limited = "" if memory_limit_bytes is None else f"-{memory_limit_bytes}b"  # how layers are measured hangs on it
    return f"{words}-{digest}-{device}-{threads}t-{engine}{limited}{emulated}"


def peak_memory_bytes() -> int:
    """Largest resident size of this process so far.

    Linux is asked for the mark of this program's own memory: ``getrusage`` there counts what the process was before it
    became this program, the parent of a local worker included.
    """
    marked = _memory_mark("VmHWM")
    if marked is not None:
        return marked
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def memory_bytes() -> int:
    """Resident size of this process now; its peak where the system does not tell."""
    now = _memory_mark("VmRSS")
    return peak_memory_bytes() if now is None else now


def _memory_mark(name: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), None)
