"""What a coordinator (C) and its workers (W) say to each other, as values.

Every message is frozen and checks its own meaning when it is born (``ValueError``): a message that exists makes sense.
Types and sizes of what a stranger sent are checked in ``codec``, before a message is made of it.

Who says what::

    C -> W   Hello  Deploy  Weights  Piece  Abort  Close  Ping  Measure  AskStatistics  Trace  AskTraced
    W -> C   Welcome  Refused  Need  Ready  Piece  Failed  Pong  Measured  Statistics  Clock  Traced
    W -> W   Piece

Sequences are tuples, also inside the JSON-able descriptions of ``Deploy``: that is how they arrive on the other side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TypeAlias, get_args

from edgedi.runtime.wire.message_checks import (
    Description,
    check_count,
    check_digest,
    check_epoch,
    check_name,
    check_payload,
    check_peer,
    check_request,
    check_seconds,
    check_weight,
    require,
)
from edgedi.runtime.wire.payloads import LAYOUTS, Buffer

COORDINATOR = -1
"""Participant number of the coordinator as a source of pieces."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """C -> W, the first word: which wire and which software speak here. Its form is the same in every wire version."""

    wire_version: int
    software_version: str

    def __post_init__(self) -> None:
        require(self.wire_version >= 1, f"wire_version must be at least 1, not {self.wire_version}")
        check_name("software_version", self.software_version)


@dataclass(frozen=True, slots=True, kw_only=True)
class Welcome:
    """W -> C, the answer to ``Hello``: who this worker is. Its form is the same in every wire version.

    ``fingerprint`` names device model and engine features: the key under which profiles are kept.
    ``memory_limit_bytes`` is None where no limit was set. Workers of the same ``machine`` reach each other's
    ``halo_address``; both are None where there is no such thing.
    """

    wire_version: int
    software_version: str
    name: str
    device: str
    threads: int
    memory_limit_bytes: int | None
    fingerprint: str
    machine: str | None = None
    halo_address: str | None = None

    def __post_init__(self) -> None:
        require(self.wire_version >= 1, f"wire_version must be at least 1, not {self.wire_version}")
        for label in ("software_version", "name", "device", "fingerprint"):
            check_name(label, getattr(self, label))
        require(self.threads >= 1, f"threads must be at least 1, not {self.threads}")
        limit = self.memory_limit_bytes
        require(limit is None or limit > 0, f"memory_limit_bytes must be positive or None, not {limit}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """W -> C: why this worker will not serve. Its form is the same in every wire version."""

    reason: str

    def __post_init__(self) -> None:
        require(bool(self.reason), "reason must not be empty")


@dataclass(frozen=True, slots=True, kw_only=True)
class Deploy:
    """C -> W: the program of participant ``participant`` (0 to ``num_participants - 1``) under a new epoch.

    ``program`` is text, one instruction a line, empty for an idle worker. ``layers`` are JSON-able descriptions whose
    values the operator table judges. Each of ``weights`` is ``{digest, dtype, shape}``, each of ``peers``
    ``{participant, address, public_key, halo_address}`` (the key None where links are open, the halo address None
    between machines). ``home_halo_address`` is the coordinator's own.
    """

    session: str
    epoch: int
    participant: int
    num_participants: int
    program: str
    layers: tuple[Description, ...]
    weights: tuple[Description, ...]
    peers: tuple[Description, ...]
    graph_digest: str
    plan_digest: str
    operator_table_version: int
    precision: str
    home_halo_address: str | None = None

    def __post_init__(self) -> None:
        check_epoch(self.session, self.epoch)
        inside = 0 <= self.participant < self.num_participants
        require(inside, f"participant {self.participant} is not one of {self.num_participants}")
        check_digest("graph_digest", self.graph_digest)
        check_digest("plan_digest", self.plan_digest)
        check_count("operator_table_version", self.operator_table_version)
        check_name("precision", self.precision)
        for weight in self.weights:
            check_weight(weight)
        if self.home_halo_address is not None:
            check_name("home_halo_address", self.home_halo_address)
        for peer in self.peers:
            check_peer(peer, self.num_participants)
        participants = [peer["participant"] for peer in self.peers]
        require(len(set(participants)) == len(participants), f"peers name a participant twice: {participants[:32]}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """W -> C, the answer to ``Deploy``: the weights that this worker lacks (none is a fine answer)."""

    session: str
    epoch: int
    digests: tuple[str, ...]

    def __post_init__(self) -> None:
        check_epoch(self.session, self.epoch)
        for digest in self.digests:
            check_digest("a digest", digest)


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """C -> W: one tensor of weights, named by its content and so of no session."""

    digest: str
    dtype: str
    shape: tuple[int, ...]
    payload: Buffer = field(repr=False)

    def __post_init__(self) -> None:
        check_digest("digest", self.digest)
        check_payload(self.dtype, self.shape, self.payload)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """W -> C: the program of this epoch is installed; it took ``seconds`` and holds ``weight_bytes``."""

    session: str
    epoch: int
    seconds: float
    weight_bytes: int

    def __post_init__(self) -> None:
        check_epoch(self.session, self.epoch)
        check_seconds("seconds", self.seconds)
        check_count("weight_bytes", self.weight_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """C -> W, W -> W, W -> C: the interval ``start <= i < stop`` of a tensor along dimension ``dim``: an input,
    a halo or an output. A tensor sent whole has ``dim`` -1 and interval 0:1.

    ``source`` is the sending participant, or ``COORDINATOR``. ``deadline_s`` is what the request had left when the
    piece was sent: clocks differ, spans do not. ``shape`` is the piece's own, batch first, channels second whatever
    the ``layout`` of the bytes; ``nhwc`` is for four dimensions only. What changes from request to request stands last.
    """

    session: str
    epoch: int
    tensor: str
    dim: int
    start: int
    stop: int
    source: int
    dtype: str
    shape: tuple[int, ...]
    layout: str
    request: int
    deadline_s: float
    payload: Buffer = field(repr=False)

    def __post_init__(self) -> None:
        """Written out in full: every halo comes through here."""
        check_name("session", self.session)
        check_name("tensor", self.tensor)
        if self.epoch < 0 or self.request < 0:
            raise ValueError(f"epoch and request must not be negative, not {self.epoch} and {self.request}")
        if self.dim < -1:
            raise ValueError(f"dim must be a dimension, or -1 for a whole tensor, not {self.dim}")
        if self.source < COORDINATOR:
            raise ValueError(f"source must be a participant or {COORDINATOR}, not {self.source}")
        if not 0 <= self.start < self.stop:
            raise ValueError(f"interval must hold 0 <= start < stop, not {self.start}:{self.stop}")
        if not 0 <= self.deadline_s < math.inf:
            raise ValueError(f"deadline_s must be finite and not negative, not {self.deadline_s}")
        if self.layout not in LAYOUTS or (self.layout == "nhwc" and len(self.shape) != 4):
            raise ValueError(
                f"layout must be nchw, or nhwc of 4 dimensions, not {self.layout[:9]!r} of {len(self.shape)}"
            )
        check_payload(self.dtype, self.shape, self.payload)


@dataclass(frozen=True, slots=True, kw_only=True)
class Abort:
    """C -> W: forget this request; what arrives for it is dropped."""

    session: str
    epoch: int
    request: int

    def __post_init__(self) -> None:
        check_request(self.session, self.epoch, self.request)


@dataclass(frozen=True, slots=True, kw_only=True)
class Close:
    """C -> W: this session is over, all its epochs with it; or, where ``epoch`` is given, that epoch alone."""

    session: str
    epoch: int | None = None

    def __post_init__(self) -> None:
        check_name("session", self.session)
        if self.epoch is not None:
            check_count("epoch", self.epoch)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ping:
    """C -> W: are you there? ``token`` comes back in the ``Pong``."""

    token: int

    def __post_init__(self) -> None:
        check_count("token", self.token)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pong:
    """W -> C: the answer to the ``Ping`` of this token."""

    token: int

    def __post_init__(self) -> None:
        check_count("token", self.token)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """W -> C: a deployment (``request`` None) or a request failed; ``error`` is the kind, ``text`` says the rest."""

    session: str
    epoch: int
    request: int | None
    error: str
    text: str
    layer: str | None

    def __post_init__(self) -> None:
        check_epoch(self.session, self.epoch)
        if self.request is not None:
            check_count("request", self.request)
        check_name("error", self.error)
        if self.layer is not None:
            check_name("layer", self.layer)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """C -> W: run every layer of a program ``repeats`` times on noise and say how long each took.

    Fields as in ``Deploy``; nothing is kept. Weights are noise too, made by the worker; digests only tell them apart.
    """

    program: str
    layers: tuple[Description, ...]
    weights: tuple[Description, ...]
    repeats: int

    def __post_init__(self) -> None:
        for weight in self.weights:
            check_weight(weight)
        require(1 <= self.repeats <= 10_000, f"repeats must be 1 to 10000, not {self.repeats}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """W -> C, the answer to ``Measure``: tuples (layer, axis, length along that axis, seconds).

    ``engine_factor`` is what share of those seconds the whole takes where an engine computes chains of layers; 1 where
    they are the engine's already, as of a program that says what it receives.
    """

    seconds: tuple[tuple[str, str, int, float], ...]
    engine_factor: float

    def __post_init__(self) -> None:
        check_seconds("engine_factor", self.engine_factor)
        for layer, axis, length, seconds in self.seconds:
            check_name("layer", layer)
            check_name("axis", axis)
            check_count("length", length)
            check_seconds("seconds", seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class AskStatistics:
    """C -> W: what have you done for this session?"""

    session: str

    def __post_init__(self) -> None:
        check_name("session", self.session)


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """W -> C, the answer to ``AskStatistics``: a snapshot, names with their units (``_s``, ``_bytes``) to values."""

    session: str
    values: dict[str, int | float | str]

    def __post_init__(self) -> None:
        check_name("session", self.session)
        for name in self.values:
            check_name("a statistic", name)


def requests_of(epoch: int) -> str:
    """Name of the statistic: requests of the asking session that ended under this epoch."""
    return f"epoch{epoch}_requests"


def busy_s_of(epoch: int) -> str:
    """Name of the statistic: seconds that the worker computed and sent for those requests."""
    return f"epoch{epoch}_busy_s"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """C -> W: note when each instruction of this request, which is yet to begin, starts and stops.

    A worker notes one request of a session at a time: another one takes its place.
    """

    session: str
    epoch: int
    request: int

    def __post_init__(self) -> None:
        check_request(self.session, self.epoch, self.request)


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """W -> C, the answer to ``Trace``: what the worker's clock said; only differences of its readings mean anything."""

    now_s: float

    def __post_init__(self) -> None:
        check_seconds("now_s", self.now_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class AskTraced:
    """C -> W: what was noted of this request? The worker then forgets it."""

    session: str
    epoch: int
    request: int

    def __post_init__(self) -> None:
        check_request(self.session, self.epoch, self.request)


@dataclass(frozen=True, slots=True, kw_only=True)
class Traced:
    """W -> C, the answer to ``AskTraced``: (number of the instruction, start, stop) by the worker's own clock."""

    session: str
    epoch: int
    request: int
    notes: tuple[tuple[int, float, float], ...]

    def __post_init__(self) -> None:
        check_request(self.session, self.epoch, self.request)
        for instruction, start_s, stop_s in self.notes:
            check_count("an instruction", instruction)
            check_seconds("start", start_s)
            check_seconds("stop", stop_s)
            require(start_s <= stop_s, f"instruction {instruction} stops at {stop_s} s, before it starts at {start_s}")


Message: TypeAlias = (
    Hello | Welcome | Refused | Deploy | Need | Weights | Ready | Piece | Abort | Close | Ping | Pong | Failed
    | Measure | Measured | AskStatistics | Statistics | Trace | Clock | AskTraced | Traced
)  # fmt: skip
MESSAGES: tuple[type[Message], ...] = get_args(Message)
"""Every message there is, in the order of a session's life."""
