"""What happens to a worker, as ``WorkerState.handle`` takes it."""

from __future__ import annotations

from dataclasses import dataclass

from edgedi.runtime.wire.messages import Message

SAME_USER = b""
"""Link of the pieces that come from processes of the same user on this machine, without keys."""

Epoch = tuple[str, int]
"""A session, and which of its deployments."""
Request = tuple[str, int, int]
"""An epoch, and the request's number."""


@dataclass(frozen=True, slots=True)
class Received:
    """``message`` arrived over ``link`` at time ``now_s``.

    ``key`` is the public key that its sender proved, ``None`` where links are open. ``only_peer`` says that this key
    was let in by a session's owner as one of its peers, and by nobody else.
    """

    link: bytes
    message: Message
    now_s: float
    key: str | None = None
    only_peer: bool = False


@dataclass(frozen=True, slots=True)
class Stored:
    """Weights were checked and kept."""

    digest: str


@dataclass(frozen=True, slots=True)
class Installed:
    """An epoch's program is loaded."""

    epoch: Epoch


@dataclass(frozen=True, slots=True)
class InstallFailed:
    """An epoch's program could not be loaded; the coordinator has been told."""

    epoch: Epoch


@dataclass(frozen=True, slots=True)
class Ended:
    """A request is done or has failed."""

    request: Request


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passes."""

    now_s: float


Event = Received | Stored | Installed | InstallFailed | Ended | Tick
