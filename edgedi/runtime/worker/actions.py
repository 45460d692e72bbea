"""What a worker does about it, as ``WorkerState.handle`` returns it: the worker performs each as it is told."""

from __future__ import annotations

from dataclasses import dataclass

from edgedi.runtime.wire.messages import Deploy, Measure, Message, Piece, Weights
from edgedi.runtime.worker.events import Epoch, Request


@dataclass(frozen=True, slots=True)
class Reply:
    """Send ``message`` over ``link``."""

    link: bytes
    message: Message


@dataclass(frozen=True, slots=True)
class Greet:
    """Say who this worker is."""

    link: bytes


@dataclass(frozen=True, slots=True)
class Store:
    """Check weights that some session waits for, and keep them."""

    link: bytes
    weights: Weights


@dataclass(frozen=True, slots=True)
class Expect:
    """A program is coming: hold on to its weights, and let its peers in, before any of them can knock."""

    deploy: Deploy


@dataclass(frozen=True, slots=True)
class Install:
    """Load the program of an epoch: its weights are all here."""

    link: bytes
    deploy: Deploy


@dataclass(frozen=True, slots=True)
class Uninstall:
    """Undo ``Expect`` and, where it came to that, ``Install``."""

    epoch: Epoch


@dataclass(frozen=True, slots=True)
class Deliver:
    """Give ``piece`` to its request, which may be new."""

    request: Request
    piece: Piece


@dataclass(frozen=True, slots=True)
class Forget:
    """Drop a request and all that it holds."""

    request: Request


@dataclass(frozen=True, slots=True)
class RunMeasure:
    """Time every layer of an installed program."""

    link: bytes
    message: Measure


@dataclass(frozen=True, slots=True)
class TellStatistics:
    """Tell a session's owner what this worker has counted."""

    link: bytes
    session: str


@dataclass(frozen=True, slots=True)
class NoteRequest:
    """Note when each instruction of a request starts and stops, and tell the time."""

    link: bytes
    request: Request


@dataclass(frozen=True, slots=True)
class TellTraced:
    """Tell what was noted of a request, and forget it."""

    link: bytes
    request: Request


Action = (
    Reply
    | Greet
    | Store
    | Expect
    | Install
    | Uninstall
    | Deliver
    | Forget
    | RunMeasure
    | TellStatistics
    | NoteRequest
    | TellTraced
)
