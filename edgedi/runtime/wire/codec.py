"""Messages to frames and back; docs/wire.md is this module in prose.

Rules:

* A message is one frame, the header, or two, header and payload. The header is a msgpack array
  ``[version, kind, field, field, ...]``, the fields in the order in which ``messages`` declares them; the payload is
  the raw buffer itself, neither copied nor looked into.
* Any bytes decode to a message or to ``RemoteProtocolError``, nothing else. What is too large is refused before it is
  unpacked, what is not of the declared type before a message is made of it.
* A message that the other side would refuse is not sent: ``encode`` checks by the same tables (``LocalProtocolError``).
* The greetings (``Hello``, ``Welcome``, ``Refused``) keep their form for ever and are read whatever their version, so
  that two versions can tell each other so. Every other message must be of ``WIRE_VERSION``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import msgpack

from edgedi.errors import LocalProtocolError, RemoteProtocolError
from edgedi.runtime.wire.messages import MESSAGES, Hello, Message, Piece, Refused, Welcome
from edgedi.runtime.wire.payloads import Buffer
from edgedi.runtime.wire.piece_headers import PieceHeaders

WIRE_VERSION = 4

LIMITS = {
    "header_bytes": 8 << 20,  # of the kinds in LARGE_KINDS
    "small_header_bytes": 64 << 10,  # of all others
    "payload_bytes": 1 << 30,
    "name_chars": 256,  # every text that has no limit of its own
    "text_chars": 8_000,  # for people: reasons, error texts
    "program_chars": 4 << 20,
    "description_chars": 4_096,  # each text inside a description
    "description_depth": 16,
    "rank": 8,
    "layers": 16_384,
    "digests": 65_536,
    "peers": 1_024,
    "measurements": 65_536,
    "statistics": 4_096,
    "notes": 262_144,
}
"""Every bound of the wire, in one place."""

LARGE_KINDS = frozenset({"Deploy", "Need", "Measure", "Measured", "Statistics", "Traced"})
"""Kinds whose headers may pass ``small_header_bytes``: a long header must say at once that it is one of them."""

FIELD_LIMITS = {
    ("Refused", "reason"): "text_chars",
    ("Deploy", "program"): "program_chars",
    ("Deploy", "layers"): "layers",
    ("Deploy", "weights"): "digests",
    ("Deploy", "peers"): "peers",
    ("Need", "digests"): "digests",
    ("Weights", "shape"): "rank",
    ("Piece", "shape"): "rank",
    ("Failed", "text"): "text_chars",
    ("Measure", "program"): "program_chars",
    ("Measure", "layers"): "layers",
    ("Measure", "weights"): "digests",
    ("Measured", "seconds"): "measurements",
    ("Statistics", "values"): "statistics",
    ("Traced", "notes"): "notes",
}
"""Which bound holds for which field; a text not named here is bounded by ``name_chars``."""

_GREETINGS = frozenset({Hello, Welcome, Refused})
_UNPACK_ERRORS = (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException)

Reader = Callable[[Any], Any]
"""Takes a value as msgpack gives it, returns it as the message wants it, or raises ``ValueError`` with the reason."""


def _shown(value: object) -> str:
    """A stranger's value for an error text: short, and with nothing in it that a terminal would obey."""
    text = ascii(value[:64] if isinstance(value, (str, bytes, tuple, list)) else value)
    return text if len(text) <= 80 else text[:77] + "..."


def _wrong(expected: str, value: object) -> ValueError:
    return ValueError(f"must be {expected}, not {type(value).__name__} {_shown(value)}")


# One reader for each type that a field can have. Exact types throughout: True is no int, a numpy number is no number.


def _read_int(value: Any) -> int:
    if type(value) is not int:
        raise _wrong("int", value)
    return value


def _read_float(value: Any) -> float:
    if type(value) is float:
        return value
    if type(value) is int:
        return float(value)
    raise _wrong("float", value)


def _read_scalar(value: Any) -> Any:
    if type(value) in (int, float):
        return value
    return _read_name(value)


def _text_reader(limit: int) -> Reader:
    def read_text(value: Any) -> str:
        if type(value) is not str:
            raise _wrong("text", value)
        if len(value) > limit:
            raise ValueError(f"has {len(value)} characters, at most {limit} are allowed")
        return value

    return read_text


_read_name = _text_reader(LIMITS["name_chars"])
_read_description_text = _text_reader(LIMITS["description_chars"])


def _read_json(value: Any, depth: int = 0) -> Any:
    """What JSON can say, with tuples for its lists."""
    if value is None or type(value) in (int, float, bool):
        return value
    if type(value) is str:
        return _read_description_text(value)
    if depth >= LIMITS["description_depth"]:
        raise ValueError(f"is nested deeper than {LIMITS['description_depth']}")
    if type(value) in (tuple, list):
        return tuple(_read_json(item, depth + 1) for item in value)
    if type(value) is dict:
        return {_read_name(key): _read_json(item, depth + 1) for key, item in value.items()}
    raise _wrong("null, number, text, array or map", value)


def _read_description(value: Any) -> dict[str, Any]:
    if type(value) is not dict:
        raise _wrong("map", value)
    read: dict[str, Any] = _read_json(value)
    return read


def _optional(read: Reader) -> Reader:
    return lambda value: None if value is None else read(value)


def _sequence_of(read: Reader, limit: int) -> Reader:
    def read_sequence(value: Any) -> tuple[Any, ...]:
        if type(value) is not tuple:
            raise _wrong("array", value)
        if len(value) > limit:
            raise ValueError(f"has {len(value)} items, at most {limit} are allowed")
        return tuple([read(item) for item in value])

    return read_sequence


def _record_of(reads: tuple[Reader, ...]) -> Reader:
    def read_record(value: Any) -> tuple[Any, ...]:
        if type(value) is not tuple or len(value) != len(reads):
            raise _wrong(f"array of {len(reads)}", value)
        return tuple([read(item) for read, item in zip(reads, value, strict=True)])

    return read_record


def _map_of(read: Reader, limit: int) -> Reader:
    def read_map(value: Any) -> dict[str, Any]:
        if type(value) is not dict:
            raise _wrong("map", value)
        if len(value) > limit:
            raise ValueError(f"has {len(value)} entries, at most {limit} are allowed")
        return {_read_name(key): read(item) for key, item in value.items()}

    return read_map


def _reader(hint: Any, limit: int) -> Reader:
    """Return the reader of a field's type hint; ``limit`` bounds its outermost length."""
    arguments = get_args(hint)
    if hint is int:
        return _read_int
    if hint is float:
        return _read_float
    if hint is str:
        return _text_reader(limit)
    if get_origin(hint) in (UnionType, Union) and NoneType in arguments:
        return _optional(_reader(arguments[0], limit))
    if get_origin(hint) is tuple and arguments[1:] == (Ellipsis,):
        return _sequence_of(_reader(arguments[0], LIMITS["name_chars"]), limit)
    if get_origin(hint) is tuple:
        return _record_of(tuple(_reader(argument, limit) for argument in arguments))
    if hint == dict[str, Any]:
        return _read_description
    if hint == dict[str, int | float | str]:
        return _map_of(_read_scalar, limit)
    raise TypeError(f"the wire has no reader for {hint}")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Form:
    """How one kind of message lies on the wire."""

    kind: str
    make: type[Message]
    names: tuple[str, ...]
    readers: tuple[Reader, ...]
    has_payload: bool
    prefix: bytes  # what a header of this version begins with


def _form(make: type[Message]) -> _Form:
    kind, hints = make.__name__, get_type_hints(make)
    names = tuple(field.name for field in fields(make) if field.name != "payload")
    limits = [LIMITS[FIELD_LIMITS.get((kind, name), "name_chars")] for name in names]
    return _Form(
        kind=kind,
        make=make,
        names=names,
        readers=tuple(_reader(hints[name], limit) for name, limit in zip(names, limits, strict=True)),
        has_payload="payload" in hints,
        prefix=msgpack.packb([WIRE_VERSION, kind] + [None] * len(names))[: -len(names)],
    )


_FORMS = {make.__name__: _form(make) for make in MESSAGES}
_LARGE_PREFIXES = tuple(_FORMS[kind].prefix for kind in sorted(LARGE_KINDS))


def encode(message: Message) -> list[Buffer]:
    """Return the frames of ``message``: its header and, where the message has one, its payload, not copied.

    Raises ``LocalProtocolError`` for what the other side would refuse.
    """
    form = _FORMS[type(message).__name__]
    try:
        header = _PIECES.pack(message) if isinstance(message, Piece) else _pack(form, message)
        if form.has_payload:
            _check_payload_size(message.payload)  # type: ignore[union-attr]  # form.has_payload says that it is there
    except (ValueError, TypeError, OverflowError) as error:
        raise LocalProtocolError(f"cannot send {form.kind}: {error}") from error
    if not form.has_payload:
        return [header]
    payload: Buffer = message.payload  # type: ignore[union-attr]  # as above
    return [header, payload]


def _pack(form: _Form, message: Message) -> bytes:
    header: list[object] = [WIRE_VERSION, form.kind]
    for name, read in zip(form.names, form.readers, strict=True):
        try:
            header.append(read(getattr(message, name)))
        except ValueError as error:
            raise ValueError(f"{name} {error}") from None
    packed: bytes = msgpack.packb(header)
    _check_size(packed)
    return packed


_PIECES = PieceHeaders(lambda piece: _pack(_FORMS["Piece"], piece))


def decode(frames: Sequence[Buffer]) -> Message:
    """Return the message that ``frames`` are; a payload is handed on without a copy.

    Raises ``RemoteProtocolError``, and nothing else, for anything that is no message.
    """
    known = _PIECES.unpack(frames)
    if known is not None:
        return known
    try:
        message = _message(frames)
    except ValueError as error:
        raise RemoteProtocolError(f"no message: {error}") from error
    if isinstance(message, Piece):
        _PIECES.remember(frames, message)
    return message


def _message(frames: Sequence[Buffer]) -> Message:
    if not 1 <= len(frames) <= 2:
        raise ValueError(f"{len(frames)} frames, a message has 1 or 2")
    header = _unpack(frames[0])
    form = _form_of(header)
    values: dict[str, Any] = {}
    for name, read, value in zip(form.names, form.readers, header[2:], strict=True):
        try:
            values[name] = read(value)
        except ValueError as error:
            raise ValueError(f"{form.kind}: {name} {error}") from None
    if form.has_payload != (len(frames) == 2):
        raise ValueError(f"{form.kind} has {1 + form.has_payload} frames, not {len(frames)}")
    if form.has_payload:
        _check_payload_size(frames[1])
        values["payload"] = frames[1]
    try:
        return form.make(**values)
    except ValueError as error:
        raise ValueError(f"{form.kind}: {error}") from None


def _form_of(header: tuple[Any, ...]) -> _Form:
    """Return the form that a header's version, kind and number of fields ask for."""
    version, kind = header[:2]
    form = _FORMS.get(kind) if type(kind) is str else None
    if type(version) is not int:
        raise _wrong("a header whose version is int", version)
    if version != WIRE_VERSION and (form is None or form.make not in _GREETINGS):
        raise ValueError(f"wire version {version}, this side speaks {WIRE_VERSION}")
    if form is None:
        raise ValueError(f"unknown kind {_shown(kind)}")
    if len(header) != 2 + len(form.names):
        raise ValueError(f"{form.kind} has {len(form.names)} fields, not {len(header) - 2}")
    return form


def _check_size(header: Buffer) -> None:
    num_bytes = memoryview(header).nbytes
    if num_bytes <= LIMITS["small_header_bytes"]:
        return
    if num_bytes > LIMITS["header_bytes"]:
        raise ValueError(f"header of {num_bytes} bytes, at most {LIMITS['header_bytes']} are allowed")
    if not bytes(memoryview(header)[:32]).startswith(_LARGE_PREFIXES):
        kinds = ", ".join(sorted(LARGE_KINDS))
        limit = LIMITS["small_header_bytes"]
        raise ValueError(f"header of {num_bytes} bytes, over {limit} only {kinds} of version {WIRE_VERSION} may have")


def _check_payload_size(payload: Buffer) -> None:
    num_bytes = memoryview(payload).nbytes
    if num_bytes > LIMITS["payload_bytes"]:
        raise ValueError(f"payload of {num_bytes} bytes, at most {LIMITS['payload_bytes']} are allowed")


def _unpack(header: Buffer) -> tuple[Any, ...]:
    """Return a header's items.

    msgpack makes room for as many items as an array says it has before it has seen one, at every level of a nest. So
    the header is first walked through without making anything: what passes holds as many items as it claims.
    """
    _check_size(header)
    try:
        walker = msgpack.Unpacker(max_buffer_size=LIMITS["header_bytes"])
        walker.feed(header)
        walker.skip()
        items = msgpack.unpackb(
            header,
            use_list=False,
            strict_map_key=True,
            object_pairs_hook=_map_without_doubles,
        )
    except _UNPACK_ERRORS as error:
        raise ValueError(f"header is not msgpack: {_shown(str(error) or type(error).__name__)}") from error
    if type(items) is not tuple or len(items) < 2:
        raise _wrong("a header that is an array [version, kind, ...]", items)
    return items


def _map_without_doubles(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    known = list(pairs)  # msgpack without its C extension hands over a generator
    entries = dict(known)
    if len(entries) != len(known):
        raise ValueError("a map names a key twice")
    return entries
