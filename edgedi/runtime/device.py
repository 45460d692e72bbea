"""Facts about the device under a process: what it is called, how much memory it has used."""

from __future__ import annotations

import hashlib
import platform
import resource
import sys
from pathlib import Path


def fingerprint(device: str, threads: int) -> str:
    """A short name of processor, its features, device kind and threads: what measured profiles are kept under."""
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
    return f"{words}-{digest}-{device}-{threads}t"


def peak_memory_bytes() -> int:
    """Largest resident size of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
