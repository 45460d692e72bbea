"""This process as an emulated device: what testbeds set around the sessions that they make, hence in no signature."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass

from edgedi.runtime.emulation.speed import Speed


@dataclass(frozen=True, slots=True, kw_only=True)
class Emulation:
    """The coordinator's device. ``proxy``, ``host:port`` of a SOCKS proxy, is its own share's only way to its peers."""

    speed: Speed = Speed()  # noqa: RUF009  # it is frozen
    proxy: str | None = None
    memory_bytes: int | None = None


_HERE: ContextVar[Emulation] = ContextVar("edgedi_emulation", default=Emulation())  # noqa: B039  # it is frozen


@contextlib.contextmanager
def emulating(emulation: Emulation) -> Iterator[None]:
    """Sessions made within the block, by this thread, have their coordinator on such a device."""
    before = _HERE.set(emulation)
    try:
        yield
    finally:
        _HERE.reset(before)


def emulation_here() -> Emulation:
    """What a session that is made now is to emulate; nothing unless a testbed says otherwise."""
    return _HERE.get()
