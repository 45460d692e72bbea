"""Every message survives the wire, any other bytes are one error, and docs/wire.md says what the code does."""

from __future__ import annotations

import dataclasses
import io
import math
import pickle
import random
import re
import struct
import time
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any, get_type_hints

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgedi.errors import EdgediError, LocalProtocolError, RemoteProtocolError
from edgedi.runtime.wire import codec, messages
from edgedi.runtime.wire.codec import FIELD_LIMITS, LARGE_KINDS, LIMITS, WIRE_VERSION, decode, encode
from edgedi.runtime.wire.messages import (
    COORDINATOR,
    MESSAGES,
    Clock,
    Close,
    Deploy,
    Failed,
    Hello,
    Measure,
    Measured,
    Message,
    Need,
    Piece,
    Ping,
    Ready,
    Refused,
    Statistics,
    Traced,
    Weights,
    Welcome,
)
from edgedi.runtime.wire.payloads import ITEM_BYTES, LAYOUTS
from edgedi.runtime.wire.piece_headers import PieceHeaders

PAGE = Path(__file__).parents[3] / "docs" / "wire.md"

# --- one strategy for each field, by its name; every field of every message has one -----------------------------------

counts = st.integers(0, 2**63 - 1)
spans_s = st.floats(0, 1e300)
names = st.text(min_size=1, max_size=LIMITS["name_chars"]).filter(str.isprintable)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)
digests = st.text("0123456789abcdef", min_size=8, max_size=128)
sizes = st.integers(0, 7)
shapes = st.lists(sizes, max_size=LIMITS["rank"]).map(tuple)
dtypes = st.sampled_from(sorted(ITEM_BYTES))
keys = st.text(
    "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#", min_size=40, max_size=40
)
numbers = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False)
scalars = st.none() | st.booleans() | numbers | texts
descriptions = st.dictionaries(
    names, st.recursive(scalars, lambda inner: st.lists(inner, max_size=3).map(tuple) | st.dictionaries(names, inner))
)

FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "wire_version": st.integers(1, 2**16),
    "threads": st.integers(1, 1024),
    "memory_limit_bytes": st.none() | st.integers(1, 2**63),
    "reason": texts.filter(bool),
    "program": texts,
    "text": texts,
    "layers": st.lists(descriptions, max_size=3).map(tuple),
    "weights": st.lists(st.fixed_dictionaries({"digest": digests, "dtype": dtypes, "shape": shapes}), max_size=3).map(
        tuple
    ),
    "digests": st.lists(digests, max_size=3).map(tuple),
    "request": counts,
    "layer": st.none() | names,
    "machine": st.none() | names,
    "halo_address": st.none() | names,
    "home_halo_address": st.none() | names,
    "repeats": st.integers(1, 10_000),
    "engine_factor": spans_s,
    "values": st.dictionaries(names, numbers | names),
    "now_s": spans_s,
    "notes": st.lists(st.tuples(counts, spans_s, spans_s).map(lambda n: (n[0], *sorted(n[1:]))), max_size=3).map(tuple),
}
for field_name in ("session", "software_version", "name", "device", "fingerprint", "precision", "tensor", "error"):
    FIELDS[field_name] = names
for field_name in ("epoch", "operator_table_version", "weight_bytes", "token"):
    FIELDS[field_name] = counts
for field_name in ("digest", "graph_digest", "plan_digest"):
    FIELDS[field_name] = digests


def plain(kind: type[Message], **special: st.SearchStrategy[Any]) -> st.SearchStrategy[Message]:
    fields = {
        field.name: special[field.name] if field.name in special else FIELDS[field.name]
        for field in dataclasses.fields(kind)
    }
    return st.builds(kind, **fields)


@st.composite
def deploys(draw: st.DrawFn) -> Message:
    num_participants = draw(st.integers(1, 5))
    peer = st.fixed_dictionaries(
        {
            "participant": st.integers(0, num_participants - 1),
            "address": names,
            "public_key": st.none() | keys,
            "halo_address": st.none() | names,
        }
    )
    peers = st.lists(peer, max_size=3, unique_by=lambda entry: entry["participant"]).map(tuple)
    participant = st.integers(0, num_participants - 1)
    return draw(plain(Deploy, participant=participant, num_participants=st.just(num_participants), peers=peers))


@st.composite
def tensors(draw: st.DrawFn, kind: type[Message]) -> Message:
    dtype = draw(dtypes)
    shape = draw(st.lists(st.integers(0, 3), max_size=4).map(tuple))
    payload = draw(st.binary(min_size=(size := math.prod(shape) * ITEM_BYTES[dtype]), max_size=size))
    start = draw(st.integers(0, 1000))
    return draw(
        plain(
            kind,
            dtype=st.just(dtype),
            shape=st.just(shape),
            start=st.just(start),
            stop=st.integers(start + 1, 2000),
            dim=st.integers(-1, 7),
            source=st.integers(COORDINATOR, 100),
            deadline_s=spans_s,
            layout=st.sampled_from(LAYOUTS if len(shape) == 4 else LAYOUTS[:1]),
            payload=st.sampled_from([bytes, bytearray, memoryview]).map(lambda make: make(payload)),
        )
    )


KINDS: dict[type[Message], st.SearchStrategy[Message]] = {
    Deploy: deploys(),
    Weights: tensors(Weights),
    Piece: tensors(Piece),
    Ready: plain(Ready, seconds=spans_s),
    Failed: plain(Failed, request=st.none() | counts),
    Measure: plain(Measure, weights=FIELDS["weights"]),
    Close: plain(Close, epoch=st.none() | counts),
    Measured: plain(Measured, seconds=st.lists(st.tuples(names, names, counts, spans_s), max_size=3).map(tuple)),
}
any_message = st.one_of([KINDS[kind] if kind in KINDS else plain(kind) for kind in MESSAGES])


def piece(**changes: Any) -> Piece:
    """A halo of one row of 56 columns and 256 channels, as a ResNet exchanges them."""
    values: dict[str, Any] = {
        "session": "5e551017a0b1c2d3",
        "epoch": 3,
        "request": 12,
        "tensor": "conv2d_17",
        "start": 14,
        "stop": 15,
        "dim": 2,
        "source": 1,
        "deadline_s": 1.5,
        "dtype": "float32",
        "shape": (1, 256, 1, 56),
        "layout": "nhwc",
        "payload": bytes(256 * 56 * 4),
    }
    return Piece(**(values | changes))


def deploy(**changes: Any) -> Deploy:
    values: dict[str, Any] = {
        "session": "s",
        "epoch": 0,
        "participant": 0,
        "num_participants": 2,
        "program": "RUN conv\n",
        "layers": ({"name": "conv", "stride": (1, 1)},),
        "weights": ({"digest": "00ff00ff", "dtype": "float32", "shape": (8, 3, 3, 3)},),
        "peers": ({"participant": 1, "address": "10.0.0.12:5555", "public_key": None, "halo_address": None},),
        "graph_digest": "0123abcd",
        "plan_digest": "0123abcd",
        "operator_table_version": 1,
        "precision": "float32",
    }
    return Deploy(**(values | changes))


def peer(**changes: Any) -> dict[str, Any]:
    """The description of a session's other worker."""
    return {"participant": 1, "address": "a:1", "public_key": None, "halo_address": None} | changes


EXAMPLES: tuple[Message, ...] = (
    Hello(wire_version=WIRE_VERSION, software_version="0.1.0"),
    Refused(reason="another version"),
    deploy(),
    Need(session="s", epoch=0, digests=("00ff00ff",)),
    piece(),
    Measure(program="program 0", layers=(), weights=(), repeats=3),
    Measured(seconds=(("conv", "rows", 7, 0.01),), engine_factor=0.7),
    Statistics(session="s", values={"requests": 3, "busy_s": 0.5, "device": "cpu"}),
    Traced(session="s", epoch=0, request=3, notes=((0, 10.0, 10.5), (1, 10.5, 11.0))),
)


# --- there and back ---------------------------------------------------------------------------------------------------


@settings(max_examples=1000, deadline=None)
@given(any_message)
def test_every_message_comes_back_as_it_was(message: Message):
    assert decode(encode(message)) == message


@settings(deadline=None)
@given(any_message)
def test_a_message_that_came_back_is_sent_as_the_same_bytes(message: Message):
    frames = [bytes(frame) for frame in encode(message)]
    assert [bytes(frame) for frame in encode(decode(frames))] == frames


@pytest.mark.parametrize("make", [bytes, bytearray, memoryview])
def test_a_payload_is_copied_neither_way(make: Any):
    payload = make(bytes(256 * 56 * 4))
    frames = encode(piece(payload=payload))
    assert frames[1] is payload
    back = decode(frames)
    assert isinstance(back, Piece)
    assert back.payload is payload


def slow_outcome(frames: list[bytes]) -> Message | str:
    """What ``frames`` are to one who has seen no piece before."""
    before, codec._PIECES = codec._PIECES, PieceHeaders(codec._PIECES._pack)
    try:
        return decode(frames)
    except RemoteProtocolError as error:
        return str(error)
    finally:
        codec._PIECES = before


def outcome(frames: list[bytes]) -> Message | str:
    try:
        return decode(frames)
    except RemoteProtocolError as error:
        return str(error)


@settings(deadline=None)
@given(tensors(Piece), counts, spans_s)
def test_a_known_head_reads_as_an_unknown_one(first: Piece, request: int, deadline_s: float):
    decode(encode(first))
    second = dataclasses.replace(first, request=request, deadline_s=deadline_s)
    frames = [bytes(frame) for frame in encode(second)]
    assert codec._PIECES.unpack(frames) == decode(frames) == slow_outcome(frames) == second


@settings(deadline=None)
@given(st.data())
def test_one_wrong_byte_behind_a_known_head_is_seen_as_ever(data: st.DataObject):
    frames = [bytes(frame) for frame in encode(piece())]
    decode(frames)
    spoilt = bytearray(frames[0])
    spoilt[data.draw(st.integers(0, len(spoilt) - 1))] = data.draw(st.integers(0, 255))
    assert repr(outcome([bytes(spoilt), frames[1]])) == repr(slow_outcome([bytes(spoilt), frames[1]]))


@pytest.mark.parametrize("deadline_s", [math.nan, math.inf, -math.inf, -1.0])
def test_a_known_head_lets_no_deadline_through_that_is_none(deadline_s: float):
    header, payload = (bytes(frame) for frame in encode(piece()))
    decode([header, payload])
    assert "deadline_s" in refused([header[:-8] + struct.pack(">d", deadline_s), payload])


@pytest.mark.parametrize("length", [0, 57_343, 57_345])
def test_a_known_head_lets_no_payload_through_of_another_length(length: int):
    header, payload = (bytes(frame) for frame in encode(piece()))
    decode([header, payload])
    assert "57344 bytes, but the payload has" in refused([header, bytes(length)])
    assert "2 frames" in refused([header])
    assert "3 frames" in refused([header, payload, payload])


def test_known_heads_do_not_grow_without_end():
    headers = PieceHeaders(codec._PIECES._pack)
    for number in range(5_000):
        one = piece(tensor=f"t{number}")
        headers.remember([headers.pack(one), one.payload], one)
    assert len(headers._heads) == len(headers._known) == 5_000 - 4_096


def test_lists_inside_a_description_come_back_as_tuples():
    back = decode(encode(deploy(layers=({"padding": [1, [2]]},))))
    assert isinstance(back, Deploy)
    assert back.layers == ({"padding": (1, (2,))},)


def test_every_kind_is_in_the_tables():
    assert {type(message).__name__ for message in EXAMPLES} >= {kind for kind, _ in FIELD_LIMITS} - {
        "Weights",
        "Failed",
    }
    assert {kind.__name__ for kind in MESSAGES} >= LARGE_KINDS
    for kind, field in FIELD_LIMITS:
        assert field in get_type_hints(getattr(messages, kind))


# --- what makes no sense is not born ----------------------------------------------------------------------------------

NONSENSE = [
    (piece, {"start": 15}, "0 <= start < stop, not 15:15"),
    (piece, {"start": -1}, "0 <= start < stop"),
    (piece, {"epoch": -1}, "not be negative"),
    (piece, {"dim": -2}, "dim must be a dimension"),
    (piece, {"source": -2}, "source must be a participant or -1"),
    (piece, {"deadline_s": math.nan}, "deadline_s must be finite"),
    (piece, {"deadline_s": math.inf}, "deadline_s must be finite"),
    (piece, {"dtype": "object"}, "dtype must be one of float32, float64"),
    (piece, {"shape": (1, 256, -1, 56)}, "must not be negative"),
    (piece, {"shape": (1, 256, 1, 55)}, "is 56320 bytes, but the payload has 57344"),
    (piece, {"payload": b""}, "payload has 0"),
    (piece, {"payload": memoryview(bytes(2 * 256 * 56 * 4))[::2]}, "one after the other"),
    (piece, {"layout": "chwn"}, "layout must be nchw"),
    (piece, {"shape": (256, 1, 56)}, "nhwc of 4 dimensions"),
    (piece, {"session": ""}, "session must be printable"),
    (piece, {"tensor": "a\x1b[31m"}, "tensor must be printable"),
    (deploy, {"participant": 2}, "participant 2 is not one of 2"),
    (deploy, {"graph_digest": "../../etc"}, "graph_digest must be 8 to 128 lowercase hex"),
    (deploy, {"weights": ({"digest": "00ff00ff"},)}, "must have exactly the keys"),
    (deploy, {"weights": ({"digest": "00ff00ff", "dtype": "float32", "shape": (1.5,)},)}, "tuple of int"),
    (deploy, {"weights": ({"digest": "00ff00ff", "dtype": "S4", "shape": ()},)}, "dtype must be one of"),
    (deploy, {"peers": (peer(participant=2),)}, "peer 2 is not one of 2"),
    (deploy, {"peers": (peer(public_key="short"),)}, "40 characters of Z85"),
    (deploy, {"peers": (peer(),) * 2}, "a participant twice"),
    (Measure, {"program": "", "layers": (), "weights": (), "repeats": 0}, "repeats must be 1 to 10000"),
    (Ping, {"token": -1}, "token must not be negative"),
    (Welcome, dict.fromkeys(("software_version", "name", "device", "fingerprint"), "x") | {
        "wire_version": 1, "threads": 0, "memory_limit_bytes": None}, "threads must be at least 1"),
    (Refused, {"reason": ""}, "reason must not be empty"),
    (Traced, {"session": "s", "epoch": 0, "request": 0, "notes": ((0, 2.0, 1.5),)}, "stops at 1.5 s, before it starts"),
    (Traced, {"session": "s", "epoch": 0, "request": 0, "notes": ((-1, 1.0, 2.0),)}, "an instruction must not be neg"),
    (Clock, {"now_s": math.inf}, "now_s must be finite"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("make", "values", "reason"), NONSENSE, ids=lambda value: value if type(value) is str else None
)
def test_a_message_without_meaning_is_not_born(make: Any, values: dict[str, Any], reason: str):
    with pytest.raises(ValueError, match=re.escape(reason)):
        make(**values)


def test_messages_are_frozen_slotted_and_keyword_only():
    for kind in MESSAGES:
        parameters = kind.__dataclass_params__  # type: ignore[attr-defined]  # dataclasses' own, without a public reader
        assert parameters.frozen, kind
        assert all(field.kw_only for field in dataclasses.fields(kind)), kind
        assert not hasattr(kind, "__dict__") or "__slots__" in vars(kind), kind


# --- what the other side would refuse is not sent ---------------------------------------------------------------------

TOO_MUCH: list[tuple[Message, str]] = [
    (Close(session="s" * 257), "session has 257 characters, at most 256"),
    (Failed(session="s", epoch=0, request=None, error="e", text="t" * 8001, layer=None), "text has 8001 characters"),
    (Weights(digest="00ff00ff", dtype="uint8", shape=(1,) * 9, payload=b"x"), "shape has 9 items, at most 8"),
    (Ping(token=2**64), "Integer value out of range"),
    (Ping(token=True), "token must be int, not bool True"),
    (Ping(token=1.0), "token must be int, not float 1.0"),  # type: ignore[arg-type]  # what the test is about
    (deploy(layers=({"weight": b"raw"},)), "layers must be null, number, text, array or map, not bytes"),
    (deploy(layers=({"name": "x" * 4097},)), "layers has 4097 characters"),
    (Statistics(session="s", values={str(i): i for i in range(4097)}), "values has 4097 entries"),
    (Statistics(session="s", values={"plan": "x" * 257}), "values has 257 characters"),
    (Refused(reason="\ud800"), "'utf-8' codec can't encode"),
]  # fmt: skip


@pytest.mark.parametrize(("message", "reason"), TOO_MUCH, ids=lambda value: value if type(value) is str else "")
def test_what_would_be_refused_is_not_sent(message: Message, reason: str):
    with pytest.raises(LocalProtocolError, match=re.escape(f"cannot send {type(message).__name__}: {reason}")):
        encode(message)


def nested(depth: int) -> dict[str, Any]:
    return {"a": nested(depth - 1)} if depth else {}


def test_descriptions_nest_only_so_deep():
    deepest = LIMITS["description_depth"] - 1
    assert decode(encode(deploy(layers=(nested(deepest),)))) == deploy(layers=(nested(deepest),))
    with pytest.raises(LocalProtocolError, match="nested deeper than 16"):
        encode(deploy(layers=(nested(deepest + 1),)))


def test_a_header_is_bounded_by_its_kind(monkeypatch: pytest.MonkeyPatch):
    large = Need(session="s", epoch=0, digests=("0" * 128,) * 1000)
    assert len(encode(large)[0]) > LIMITS["small_header_bytes"]
    assert decode(encode(large)) == large
    monkeypatch.setitem(LIMITS, "header_bytes", 100_000)
    with pytest.raises(LocalProtocolError, match="at most 100000 are allowed"):
        encode(large)


def test_a_payload_is_bounded(monkeypatch: pytest.MonkeyPatch):
    frames = encode(piece(tensor="of_this_test"))
    monkeypatch.setitem(LIMITS, "payload_bytes", 57_343)
    with pytest.raises(LocalProtocolError, match="payload of 57344 bytes, at most 57343"):
        encode(piece())
    with pytest.raises(RemoteProtocolError, match="payload of 57344 bytes, at most 57343"):
        decode(frames)


# --- any bytes are a message or one error -----------------------------------------------------------------------------


def refused(frames: Any) -> str:
    """The error's text; anything else raised is the test's failure."""
    with pytest.raises(RemoteProtocolError) as caught:
        decode(frames)
    return str(caught.value)


def decodes_or_is_refused(frames: list[bytes]) -> None:
    outcome: Message | str
    try:
        outcome = decode(frames)
    except RemoteProtocolError as error:
        outcome = str(error)
    if isinstance(outcome, str):
        assert outcome.isprintable(), "what a stranger wrote must not reach a terminal raw"
        assert len(outcome) < 400
    else:
        assert type(outcome) in MESSAGES


@settings(max_examples=1000, deadline=None)
@given(st.lists(st.binary(max_size=300), max_size=4))
def test_arbitrary_bytes(frames: list[bytes]):
    decodes_or_is_refused(frames)


@settings(max_examples=1000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(any_message, st.data())
def test_mutated_messages(message: Message, data: st.DataObject):
    frames = [bytearray(frame) for frame in encode(message)]
    for _ in range(data.draw(st.integers(1, 4))):
        frame = data.draw(st.sampled_from(frames))
        place = data.draw(st.integers(0, len(frame)))
        cut = data.draw(st.integers(0, 3))
        frame[place : place + cut] = data.draw(st.binary(max_size=3))
    decodes_or_is_refused([bytes(frame) for frame in frames])


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
)
kind_names = st.sampled_from([kind.__name__ for kind in MESSAGES])


@settings(max_examples=1000, deadline=None)
@given(kind_names, st.data(), st.lists(st.binary(max_size=16), max_size=1))
def test_right_frames_with_wrong_fields(kind: str, data: st.DataObject, payloads: list[bytes]):
    num_fields = len(dataclasses.fields(getattr(messages, kind))) - (kind in ("Piece", "Weights"))
    values = data.draw(st.lists(anything, min_size=num_fields, max_size=num_fields))
    decodes_or_is_refused([msgpack.packb([WIRE_VERSION, kind, *values]), *payloads])


@settings(max_examples=500, deadline=None)
@given(st.sampled_from(EXAMPLES), st.data())
def test_one_wrong_field_names_itself(message: Message, data: st.DataObject):
    header = list(msgpack.unpackb(bytes(encode(message)[0])))
    index = data.draw(st.integers(2, len(header) - 1))
    header[index] = b"raw bytes are the type of no field"
    name = dataclasses.fields(message)[index - 2].name
    text = refused([msgpack.packb(header), *encode(message)[1:]])
    assert text.startswith(f"no message: {type(message).__name__}: {name} must be "), text


def exploits() -> dict[str, bytes]:
    """What was sent to the ports of systems like this one; each is a file that some loader would obey."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps(print))
        file.writestr("archive/version", "3")
    description = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(117) + b"\n"
    return {
        "pickle": pickle.dumps(print, protocol=4),
        "pickle in text": pickle.dumps(print, protocol=0),
        "joblib": b"\x80\x03cjoblib.numpy_pickle\nNumpyArrayWrapper\nq\x00)\x81q\x01.",
        "npy of objects": b"\x93NUMPY\x01\x00"
        + struct.pack("<H", len(description))
        + description
        + pickle.dumps([print]),
        "torch archive": archive.getvalue(),
        "http": b"GET / HTTP/1.1\r\nHost: worker\r\n\r\n",
        "tls": bytes.fromhex("16030100ff010000fb0303") + bytes(200),
        "256 random bytes": random.Random(2).randbytes(256),
        "msgpack extension": msgpack.packb([WIRE_VERSION, "Ping", msgpack.ExtType(5, b"x")]),
        "msgpack timestamp": msgpack.packb([WIRE_VERSION, "Ping", msgpack.Timestamp(1, 1)]),
        "map with a key twice": b"\x94\x01\xaaStatistics\xa1s\x82\xa1a\x01\xa1a\x02",
        "map with a number as key": b"\x94\x01\xaaStatistics\xa1s\x81\x01\x02",
        "text that is no UTF-8": b"\x93\x01\xa5Close\xa2\xc3\x28",
        "nested arrays": b"\x91" * 100_000,
        "two messages in one": msgpack.packb([WIRE_VERSION, "Ping", 1]) * 2,
        "empty": b"",
    }


@pytest.mark.parametrize("name", exploits())
def test_exploits_are_refused(name: str):
    attack = exploits()[name]
    assert refused([attack])
    assert refused([attack, attack])
    assert refused([bytes(encode(piece())[0]), attack])


BROKEN = {
    "no frame": ([], "0 frames, a message has 1 or 2"),
    "three frames": ([b"", b"", b""], "3 frames, a message has 1 or 2"),
    "no array": ([msgpack.packb({"v": 1})], "must be a header that is an array [version, kind, ...], not dict"),
    "too short": ([msgpack.packb([1])], "must be a header that is an array"),
    "kind of another type": ([msgpack.packb([WIRE_VERSION, 2])], "unknown kind 2"),
    "unknown kind": ([msgpack.packb([WIRE_VERSION, "Obey\x1b", "x"])], "unknown kind 'Obey\\x1b'"),
    "version of another type": ([msgpack.packb(["1", "Ping", 1])], "must be a header whose version is int"),
    "other version": ([msgpack.packb([7, "Ping", 1])], f"wire version 7, this side speaks {WIRE_VERSION}"),
    "other version, unknown kind": ([msgpack.packb([7, "Later"])], f"wire version 7, this side speaks {WIRE_VERSION}"),
    "field missing": ([msgpack.packb([WIRE_VERSION, "Ping"])], "Ping has 1 fields, not 0"),
    "field too many": ([msgpack.packb([WIRE_VERSION, "Ping", 1, 2])], "Ping has 1 fields, not 2"),
    "payload missing": ([bytes(encode(piece())[0])], "Piece has 2 frames, not 1"),
    "payload too many": ([msgpack.packb([WIRE_VERSION, "Ping", 1]), b""], "Ping has 1 frames, not 2"),
    "payload too short": ([bytes(encode(piece())[0]), b"1234"], "is 57344 bytes, but the payload has 4"),
    "a number of bool": ([msgpack.packb([WIRE_VERSION, "Ping", True])], "token must be int, not bool True"),
    "a huge shape": (
        [msgpack.packb([WIRE_VERSION, "Weights", "00ff00ff", "float64", [2**63] * 8]), b""],
        "but the payload has 0",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_errors_say_what_is_wrong(case: str):
    frames, reason = BROKEN[case]
    assert reason in refused(frames)


@pytest.mark.parametrize("message", [EXAMPLES[0], EXAMPLES[1]], ids=["Hello", "Refused"])
def test_greetings_are_read_whatever_their_version(message: Message):
    header = msgpack.unpackb(bytes(encode(message)[0]))
    assert decode([msgpack.packb([WIRE_VERSION + 1, *header[1:]])]) == message


def test_a_long_header_must_say_at_once_what_it_is():
    long = msgpack.packb([WIRE_VERSION, "Close", "s" * LIMITS["small_header_bytes"]])
    assert f"over 65536 only {', '.join(sorted(LARGE_KINDS))} of version {WIRE_VERSION} may have" in refused([long])
    assert "at most 8388608 are allowed" in refused([bytes(LIMITS["header_bytes"] + 1)])


def test_a_lie_about_lengths_costs_no_memory():
    """900 arrays inside each other, each said to hold 65,520 items: msgpack alone makes room for half a gigabyte."""
    head = msgpack.packb([WIRE_VERSION, "Need", "s", 0, []])[:-1]
    attack = head + b"\xdd\x00\x00\xff\xf0" * 900 + b"\xc0" * 70_000
    tracemalloc.start()
    try:
        refused([attack])
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 2_000_000


def test_only_edgedi_errors_come_out():
    assert issubclass(RemoteProtocolError, EdgediError)
    assert not issubclass(RemoteProtocolError, ValueError)


# --- the path of a halo -----------------------------------------------------------------------------------------------


def test_a_piece_costs_little():
    """8 microseconds for both on a 2-core server; the bound is loose, so that a busy machine passes."""
    message, repeats, best_s = piece(), 2_000, math.inf
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(repeats):
            decode(encode(message))
        best_s = min(best_s, (time.perf_counter() - start) / repeats)
    assert best_s < 60e-6


# --- docs/wire.md is this module --------------------------------------------------------------------------------------

TYPE_WORDS = {
    int: "int",
    float: "float",
    str: "text",
    int | None: "int or nil",
    str | None: "text or nil",
    tuple[int, ...]: "array of int",
    tuple[str, ...]: "array of text",
    tuple[dict[str, Any], ...]: "array of maps",
    dict[str, int | float | str]: "map of numbers and texts",
    tuple[tuple[str, str, int, float], ...]: "array of [text, text, int, float]",
    tuple[tuple[int, float, float], ...]: "array of [int, float, float]",
}


def message_rows() -> list[str]:
    rows = []
    for kind in MESSAGES:
        hints = get_type_hints(kind)
        who = (kind.__doc__ or "").partition(":")[0].partition(", the ")[0].replace("->", "→")
        fields = ", ".join(f"`{name}` {TYPE_WORDS[hint]}" for name, hint in hints.items() if name != "payload")
        rows.append(f"| {kind.__name__} | {who} | {fields} | {'yes' if 'payload' in hints else 'no'} |")
    return rows


def limit_rows() -> list[str]:
    return [f"| `{name}` | {limit} |" for name, limit in LIMITS.items()]


def field_limit_rows() -> list[str]:
    return [f"| {kind} | `{field}` | `{limit}` |" for (kind, field), limit in FIELD_LIMITS.items()]


def rows_under(heading: str) -> list[str]:
    section = PAGE.read_text(encoding="utf-8").partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return [line for line in section.splitlines() if line.startswith("| ")]


@pytest.mark.parametrize(
    ("heading", "rows"),
    [("Messages", message_rows()), ("Limits", limit_rows()), ("Which limit holds where", field_limit_rows())],
    ids=["Messages", "Limits", "Which limit holds where"],
)
def test_the_page_lists_what_the_code_has(heading: str, rows: list[str]):
    _title, *listed = rows_under(heading)
    assert listed == rows


def test_the_page_names_version_dtypes_and_layouts():
    page = PAGE.read_text(encoding="utf-8")
    assert f"This page describes wire version {codec.WIRE_VERSION}." in page
    for dtype, item_bytes in ITEM_BYTES.items():
        assert f"`{dtype}` {item_bytes}" in page
    assert all(f"`{layout}`" in page for layout in LAYOUTS)
    assert all(f"`{kind}`" in page for kind in LARGE_KINDS)
