"""What a worker decides, without sockets, tensors or clocks: ``handle`` takes an event and returns actions.

A session belongs to the link, and to the key proven over it, that deployed it: only they may deploy to it, close it or
abort its requests. Where keys are in use, pieces come from its owner and from the peers that its owner named; a key
that was let in as some session's peer may send pieces and nothing else.

Of each session several epochs can be installed; a request lives in one epoch and starts with its first piece. Pieces of
an epoch that is yet to come are parked, up to a number, a size and a time; pieces of an epoch or a request that is over
are dropped and counted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from edgedi.partition.graph.operators import OPERATOR_TABLE_VERSION
from edgedi.runtime.wire.codec import WIRE_VERSION
from edgedi.runtime.wire.messages import (
    Abort,
    AskStatistics,
    AskTraced,
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
    Trace,
    Weights,
)
from edgedi.runtime.wire.payloads import buffer_bytes
from edgedi.runtime.worker.actions import (
    Action,
    Deliver,
    Expect,
    Forget,
    Greet,
    Install,
    NoteRequest,
    Reply,
    RunMeasure,
    Store,
    TellStatistics,
    TellTraced,
    Uninstall,
)
from edgedi.runtime.worker.events import (
    SAME_USER,
    Ended,
    Epoch,
    Event,
    Installed,
    InstallFailed,
    Received,
    Request,
    Stored,
    Tick,
)

MAX_PARKED = 256
"""Pieces kept for epochs that are not installed yet; the oldest go first."""
MAX_PARKED_BYTES = 64_000_000
"""What their payloads may hold together."""
MAX_ENDED = 1024
"""Requests of an epoch that may end before one that began earlier; what is further back has ended."""
SESSION_SILENCE_S = 60.0
"""A session whose coordinator says nothing for this long is closed."""

MissingWeights = Callable[[Iterable[str]], tuple[str, ...]]


@dataclass(slots=True)
class _Ended:
    """Which requests of one epoch are over. They may end in another order than they began in."""

    up_to: int = -1
    numbers: set[int] = field(default_factory=set)

    def add(self, number: int) -> None:
        self.numbers.add(number)
        while len(self.numbers) > MAX_ENDED:
            self.up_to = min(self.numbers)
            self.numbers.remove(self.up_to)

    def __contains__(self, number: int) -> bool:
        return number <= self.up_to or number in self.numbers


@dataclass(slots=True)
class _Session:
    link: bytes
    key: str | None
    heard_s: float
    waiting: dict[int, tuple[Deploy, set[str]]] = field(default_factory=dict)
    installed: set[int] = field(default_factory=set)
    newest: int = -1
    peers: set[str] = field(default_factory=set)
    requests: set[Request] = field(default_factory=set)
    ended: dict[int, _Ended] = field(default_factory=dict)
    traced: Request | None = None
    """The one request that is, or was, noted and has not been told."""

    def owned_by(self, event: Received) -> bool:
        return self.link == event.link and self.key == event.key

    def takes_pieces_of(self, event: Received) -> bool:
        return self.key is None or event.link == SAME_USER or event.key == self.key or event.key in self.peers


class WorkerState:
    """All sessions of one worker. ``missing_weights``, which digests are not kept, is all it asks of the outside."""

    def __init__(self, missing_weights: MissingWeights) -> None:
        self._missing_weights = missing_weights
        self._sessions: dict[str, _Session] = {}
        self._parked: deque[Received] = deque()
        self._parked_bytes = 0
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
            case Received():
                return self._received(event)
            case Stored(digest=digest):
                return self._stored(digest)
            case Installed(epoch=epoch):
                return self._installed(epoch)
            case InstallFailed(epoch=epoch):
                return self._install_failed(epoch)
            case Ended(request=request):
                return self._ended(request)
            case Tick(now_s=now_s):
                return self._tick(now_s)

    def _received(self, event: Received) -> list[Action]:
        link, message = event.link, event.message
        if isinstance(message, Piece):
            return self._piece(event)
        if event.only_peer:
            return [Reply(link, Refused(reason="a session's peer may send pieces and nothing else"))]
        for session in self._sessions.values():
            if session.owned_by(event):
                session.heard_s = event.now_s
        match message:
            case Deploy():
                return self._deploy(event, message)
            case Abort() | Close() | AskStatistics() | Trace() | AskTraced():
                return self._owned(event, message)
            case _:
                return self._of_no_session(link, message)

    def _of_no_session(self, link: bytes, message: Message) -> list[Action]:
        """What anybody who was let in may say."""
        match message:
            case Hello():
                return self._hello(link, message)
            case Ping(token=token):
                return [Reply(link, Pong(token=token))]
            case Weights(digest=digest):
                return [Store(link, message)] if self._awaits(digest) else []
            case Measure():
                return [RunMeasure(link, message)]
        return [Reply(link, Refused(reason=f"a worker does not take {type(message).__name__}"))]

    def _hello(self, link: bytes, hello: Hello) -> list[Action]:
        if hello.wire_version == WIRE_VERSION:
            return [Greet(link)]
        reason = f"this worker speaks wire version {WIRE_VERSION}, the coordinator {hello.wire_version} "
        return [Greet(link), Reply(link, Refused(reason=reason + f"(edgedi {hello.software_version})"))]

    def _owned(self, event: Received, message: Abort | Close | AskStatistics | Trace | AskTraced) -> list[Action]:
        session = self._sessions.get(message.session)
        if session is None or not session.owned_by(event):
            if isinstance(message, (Abort, Close)):
                return []
            return [Reply(event.link, Refused(reason=f"this worker has no session {message.session} of yours"))]
        match message:
            case Abort(epoch=epoch, request=number):
                request = (message.session, epoch, number)
                return [Forget(request), *self._ended(request)]
            case Close(epoch=int(epoch)):
                return self._retire(session, message.session, epoch)
            case Close():
                return self._close(message.session)
            case Trace() | AskTraced():
                return self._trace(session, event.link, message)
        return [TellStatistics(event.link, message.session)]

    @staticmethod
    def _trace(session: _Session, link: bytes, message: Trace | AskTraced) -> list[Action]:
        request = (message.session, message.epoch, message.request)
        if isinstance(message, Trace):
            if message.epoch not in session.installed:
                return [
                    Reply(link, Refused(reason=f"epoch {message.epoch} is not installed, there is nothing to trace"))
                ]
            session.traced = request
            return [NoteRequest(link, request)]
        if session.traced != request:
            return [Reply(link, Refused(reason=f"request {message.request} was not traced, or has been told"))]
        session.traced = None
        return [TellTraced(link, request)]

    def _tick(self, now_s: float) -> list[Action]:
        while self._parked and now_s - self._parked[0].now_s > SESSION_SILENCE_S:
            self._unpark_oldest()
            self.num_dropped += 1
        silent = [name for name, s in self._sessions.items() if now_s - s.heard_s > SESSION_SILENCE_S]
        return [action for name in silent for action in self._close(name)]

    # --- deployment -----------------------------------------------------------------------------------------------

    def _deploy(self, event: Received, deploy: Deploy) -> list[Action]:
        wrong = self._why_not(event, deploy)
        if wrong is not None:
            kind, text = wrong
            failed = Failed(
                session=deploy.session, epoch=deploy.epoch, request=None, error=kind, text=text, layer=None
            )  # fmt: skip
            return [Reply(event.link, failed)]
        session = self._sessions.setdefault(deploy.session, _Session(event.link, event.key, event.now_s))
        missing = self._missing_weights(weight["digest"] for weight in deploy.weights)
        session.waiting[deploy.epoch] = (deploy, set(missing))
        session.newest = deploy.epoch
        session.peers |= {peer["public_key"] for peer in deploy.peers if peer["public_key"] is not None}
        need = Reply(event.link, Need(session=deploy.session, epoch=deploy.epoch, digests=missing))
        ready: list[Action] = [] if missing else [Install(event.link, deploy)]
        return [Expect(deploy), need, *ready]

    def _why_not(self, event: Received, deploy: Deploy) -> tuple[str, str] | None:
        """(kind, text) where a deployment is refused."""
        if deploy.operator_table_version != OPERATOR_TABLE_VERSION:
            versions = f"{OPERATOR_TABLE_VERSION}, the program is for {deploy.operator_table_version}"
            return "version", f"this worker has operator table {versions}"
        session = self._sessions.get(deploy.session)
        if session is None:
            return None
        if not session.owned_by(event):
            return "refused", f"session {deploy.session} belongs to another coordinator"
        if deploy.epoch <= session.newest:
            return "refused", f"epoch {deploy.epoch} is deployed already"
        return None

    def _awaits(self, digest: str) -> bool:
        return any(digest in missing for s in self._sessions.values() for _, missing in s.waiting.values())

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
        return [action for event in self._unpark(epoch) for action in self._piece(event)]

    def _install_failed(self, epoch: Epoch) -> list[Action]:
        name, number = epoch
        if name in self._sessions:
            self._sessions[name].waiting.pop(number, None)
        self.num_dropped += len(self._unpark(epoch))
        return [Uninstall(epoch)]

    def _close(self, name: str) -> list[Action]:
        session = self._sessions.pop(name)
        forgotten: list[Action] = [Forget(request) for request in sorted(session.requests)]
        return forgotten + [Uninstall((name, number)) for number in sorted({*session.installed, *session.waiting})]

    def _retire(self, session: _Session, name: str, epoch: int) -> list[Action]:
        """Free one epoch of a session that goes on."""
        known = epoch in session.installed or epoch in session.waiting
        session.installed.discard(epoch)
        session.waiting.pop(epoch, None)
        session.ended.pop(epoch, None)
        if session.traced is not None and session.traced[1] == epoch:
            session.traced = None
        mine = sorted(request for request in session.requests if request[1] == epoch)
        session.requests.difference_update(mine)
        forgotten: list[Action] = [Forget(request) for request in mine]
        return [*forgotten, Uninstall((name, epoch))] if known else forgotten

    # --- requests -------------------------------------------------------------------------------------------------

    def _piece(self, event: Received) -> list[Action]:
        piece = event.message
        assert isinstance(piece, Piece)
        session = self._sessions.get(piece.session)
        if session is None or (piece.epoch not in session.installed and self._is_to_come(session, piece.epoch)):
            self._park(event)
            return []
        request = (piece.session, piece.epoch, piece.request)
        over = piece.request in session.ended.get(piece.epoch, ())
        if piece.epoch not in session.installed or not session.takes_pieces_of(event) or over:
            self.num_dropped += 1
            return []
        session.requests.add(request)
        return [Deliver(request, piece)]

    @staticmethod
    def _is_to_come(session: _Session, epoch: int) -> bool:
        return epoch in session.waiting or epoch > session.newest

    def _park(self, event: Received) -> None:
        self._parked.append(event)
        self._parked_bytes += _payload_bytes(event)
        while len(self._parked) > MAX_PARKED or self._parked_bytes > MAX_PARKED_BYTES:
            self._unpark_oldest()
            self.num_dropped += 1

    def _unpark_oldest(self) -> None:
        self._parked_bytes -= _payload_bytes(self._parked.popleft())

    def _unpark(self, epoch: Epoch) -> list[Received]:
        """Take what was parked for ``epoch``, in the order of its arrival."""
        taken = [event for event in self._parked if _epoch_of(event) == epoch]
        self._parked = deque(event for event in self._parked if _epoch_of(event) != epoch)
        self._parked_bytes = sum(map(_payload_bytes, self._parked))
        return taken

    def _ended(self, request: Request) -> list[Action]:
        name, epoch, number = request
        session = self._sessions.get(name)
        if session is not None:
            session.requests.discard(request)
            session.ended.setdefault(epoch, _Ended()).add(number)
        return []


def _payload_bytes(event: Received) -> int:
    assert isinstance(event.message, Piece)
    return buffer_bytes(event.message.payload)


def _epoch_of(event: Received) -> Epoch:
    assert isinstance(event.message, Piece)
    return event.message.session, event.message.epoch
