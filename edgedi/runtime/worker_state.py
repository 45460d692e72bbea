"""What a worker decides, without sockets, tensors or clocks: ``handle`` takes an event and returns actions.

A session belongs to the link that deployed it: only that link may deploy to it, close it or abort its requests. Peers of
the session may send pieces, nothing else. Of each session several epochs can be installed; a request lives in one epoch
and starts with its first piece. Pieces of an epoch that is not installed yet are parked, up to a limit; pieces of an
older or closed one are dropped and counted.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from edgedi.partition.operators import OPERATOR_TABLE_VERSION
from edgedi.runtime.messages import (
    Abort,
    AskStatistics,
    Close,
    Deploy,
    Failed,
    Hello,
    Measure,
    Message,
    Need,
    Piece,
    Ping,
    Pong,
    Refused,
    Weights,
)
from edgedi.runtime.wire import WIRE_VERSION

MAX_PARKED = 256
"""Pieces kept for epochs that are not installed yet; the oldest go first."""
SESSION_SILENCE_S = 60.0
"""A session whose coordinator says nothing for this long is closed."""

Epoch = tuple[str, int]
Request = tuple[str, int, int]


# --- events ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Received:
    """``message`` arrived over ``link`` at time ``now_s``."""

    link: bytes
    message: Message
    now_s: float


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


# --- actions ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reply:
    link: bytes
    message: Message


@dataclass(frozen=True, slots=True)
class Greet:
    """Say who this worker is."""

    link: bytes


@dataclass(frozen=True, slots=True)
class Store:
    link: bytes
    weights: Weights


@dataclass(frozen=True, slots=True)
class Install:
    link: bytes
    deploy: Deploy


@dataclass(frozen=True, slots=True)
class Uninstall:
    epoch: Epoch


@dataclass(frozen=True, slots=True)
class Deliver:
    """Give ``piece`` to its request, which may be new."""

    request: Request
    piece: Piece


@dataclass(frozen=True, slots=True)
class Forget:
    request: Request


@dataclass(frozen=True, slots=True)
class RunMeasure:
    link: bytes
    message: Measure


@dataclass(frozen=True, slots=True)
class TellStatistics:
    link: bytes
    session: str


Action = Reply | Greet | Store | Install | Uninstall | Deliver | Forget | RunMeasure | TellStatistics


# --- the machine -----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Session:
    link: bytes
    heard_s: float
    waiting: dict[int, tuple[Deploy, set[str]]] = field(default_factory=dict)
    installed: set[int] = field(default_factory=set)
    requests: set[Request] = field(default_factory=set)
    ended: dict[int, int] = field(default_factory=dict)
    """Per epoch the highest request that ended: late pieces of it do not start it anew."""


class WorkerState:
    """All sessions of one worker. ``held`` tells which weights are kept: the one question asked of the outside."""

    def __init__(self, missing_weights) -> None:  # type: ignore[no-untyped-def]  # Callable[[Iterable[str]], tuple[str, ...]]
        self._missing_weights = missing_weights
        self._sessions: dict[str, _Session] = {}
        self._parked: OrderedDict[int, Piece] = OrderedDict()
        self._num_parked = 0
        self.num_dropped = 0

    @property
    def sessions(self) -> tuple[str, ...]:
        return tuple(self._sessions)

    def owner(self, session: str) -> bytes | None:
        """The link that a session belongs to."""
        known = self._sessions.get(session)
        return known.link if known else None

    def handle(self, event: Event) -> list[Action]:
        """The only door."""
        match event:
            case Received(link=link, message=message, now_s=now_s):
                return self._received(link, message, now_s)
            case Stored(digest=digest):
                return self._stored(digest)
            case Installed(epoch=epoch):
                return self._installed(epoch)
            case InstallFailed(epoch=(session, number)):
                if session in self._sessions:
                    self._sessions[session].waiting.pop(number, None)
                return []
            case Ended(request=request):
                return self._ended(request)
            case Tick(now_s=now_s):
                silent = [n for n, s in self._sessions.items() if now_s - s.heard_s > SESSION_SILENCE_S]
                return [action for name in silent for action in self._close(name)]

    def _received(self, link: bytes, message: Message, now_s: float) -> list[Action]:
        for session in self._sessions.values():
            if session.link == link:
                session.heard_s = now_s
        match message:
            case Piece():
                return self._piece(message)
            case Hello():
                return self._hello(link, message)
            case Ping(token=token):
                return [Reply(link, Pong(token=token))]
            case Weights():
                return [Store(link, message)]
            case Deploy():
                return self._deploy(link, message, now_s)
            case Abort() | Close() | Measure() | AskStatistics():
                return self._owned(link, message)
        return [Reply(link, Refused(reason=f"a worker does not take {type(message).__name__}"))]

    def _hello(self, link: bytes, hello: Hello) -> list[Action]:
        if hello.wire_version == WIRE_VERSION:
            return [Greet(link)]
        reason = f"this worker speaks wire version {WIRE_VERSION}, the coordinator {hello.wire_version} "
        return [Greet(link), Reply(link, Refused(reason=reason + f"(edgedi {hello.software_version})"))]

    def _owned(self, link: bytes, message: Abort | Close | Measure | AskStatistics) -> list[Action]:
        session = self._sessions.get(message.session)
        if session is None or session.link != link:
            return [] if isinstance(message, (Abort, Close)) else [
                Reply(link, Refused(reason=f"this worker has no session {message.session} of yours"))
            ]
        match message:
            case Abort(epoch=epoch, request=number):
                request = (message.session, epoch, number)
                return [Forget(request), *self._ended(request)]
            case Close():
                return self._close(message.session)
            case Measure():
                return [RunMeasure(link, message)]
            case AskStatistics():
                return [TellStatistics(link, message.session)]

    # --- deployment -----------------------------------------------------------------------------------------------

    def _deploy(self, link: bytes, deploy: Deploy, now_s: float) -> list[Action]:
        if deploy.operator_table_version != OPERATOR_TABLE_VERSION:
            text = f"this worker has operator table {OPERATOR_TABLE_VERSION}, the program is for {deploy.operator_table_version}"
            return [Reply(link, _failed(deploy, "version", text))]
        session = self._sessions.setdefault(deploy.session, _Session(link, now_s))
        if session.link != link:
            return [Reply(link, _failed(deploy, "refused", f"session {deploy.session} belongs to another coordinator"))]
        if deploy.epoch in session.installed or deploy.epoch in session.waiting:
            return [Reply(link, _failed(deploy, "refused", f"epoch {deploy.epoch} is deployed already"))]
        missing = self._missing_weights(weight["digest"] for weight in deploy.weights)
        need = Reply(link, Need(session=deploy.session, epoch=deploy.epoch, digests=missing))
        session.waiting[deploy.epoch] = (deploy, set(missing))
        return [need] if missing else [need, Install(link, deploy)]

    def _stored(self, digest: str) -> list[Action]:
        actions: list[Action] = []
        for session in self._sessions.values():
            for deploy, missing in session.waiting.values():
                if digest in missing:
                    missing.discard(digest)
                    if not missing:
                        actions.append(Install(session.link, deploy))
        return actions

    def _installed(self, epoch: Epoch) -> list[Action]:
        name, number = epoch
        session = self._sessions.get(name)
        if session is None:
            return [Uninstall(epoch)]
        session.waiting.pop(number, None)
        session.installed.add(number)
        mine = [key for key, piece in self._parked.items() if (piece.session, piece.epoch) == epoch]
        return [action for key in mine for action in self._piece(self._parked.pop(key))]

    def _close(self, name: str) -> list[Action]:
        session = self._sessions.pop(name)
        forgotten: list[Action] = [Forget(request) for request in sorted(session.requests)]
        return forgotten + [Uninstall((name, number)) for number in sorted({*session.installed, *session.waiting})]

    # --- requests -------------------------------------------------------------------------------------------------

    def _piece(self, piece: Piece) -> list[Action]:
        session = self._sessions.get(piece.session)
        if session is None or piece.epoch not in session.installed:
            self._park(piece)
            return []
        request = (piece.session, piece.epoch, piece.request)
        if request not in session.requests:
            if piece.request <= session.ended.get(piece.epoch, -1):
                self.num_dropped += 1
                return []
            session.requests.add(request)
        return [Deliver(request, piece)]

    def _park(self, piece: Piece) -> None:
        self._num_parked += 1
        self._parked[self._num_parked] = piece
        while len(self._parked) > MAX_PARKED:
            self._parked.popitem(last=False)
            self.num_dropped += 1

    def _ended(self, request: Request) -> list[Action]:
        name, epoch, number = request
        session = self._sessions.get(name)
        if session is not None:
            session.requests.discard(request)
            session.ended[epoch] = max(number, session.ended.get(epoch, -1))
        return []


def _failed(deploy: Deploy, error: str, text: str) -> Failed:
    return Failed(session=deploy.session, epoch=deploy.epoch, request=None, error=error, text=text, layer=None)
