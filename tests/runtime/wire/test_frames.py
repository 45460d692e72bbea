"""Payloads in several frames: cut and put together again, whatever their size."""

from __future__ import annotations

import pytest
import torch
import zmq
from hypothesis import given
from hypothesis import strategies as st

from edgedi.errors import RemoteProtocolError
from edgedi.runtime.execution.tensors import from_wire
from edgedi.runtime.links.peers import send_payload
from edgedi.runtime.wire import frames
from edgedi.runtime.wire.codec import LIMITS, decode, encode
from edgedi.runtime.wire.frames import FRAME_BYTES, joined, split
from edgedi.runtime.wire.messages import Weights


@given(content=st.binary(max_size=40), size=st.integers(1, 12))
def test_what_is_cut_is_put_together_again(content: bytes, size: int):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frames, "FRAME_BYTES", size)
        parts = split(content)
    assert [len(part) for part in parts[:-1]] == [size] * (len(parts) - 1)
    assert len(parts) == max(1, -(-len(content) // size))
    header, payload = joined([b"header", *parts])
    assert (header, bytes(payload)) == (b"header", content)
    assert isinstance(payload, bytearray) == (len(parts) > 1)


def test_messages_of_one_and_two_frames_are_left_as_they_are():
    whole = memoryview(b"payload")
    assert joined([b"header"]) == [b"header"]
    assert joined([b"header", whole])[1] is whole


def test_a_message_of_too_many_bytes_is_refused_before_room_is_made(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(LIMITS, "payload_bytes", 10)
    with pytest.raises(RemoteProtocolError, match="payload of 11 bytes, at most 10 are allowed"):
        joined([b"header", b"123456", b"78901"])
    assert joined([b"header", b"123456", b"7890"])[1] == b"1234567890"


def test_large_weights_cross_a_socket_in_frames_and_are_nobody_elses():
    values = torch.arange(FRAME_BYTES // 4 * 2 + 10, dtype=torch.int32)
    sent = Weights(
        digest="0" * 64, dtype="int32", shape=tuple(values.shape), payload=memoryview(values.numpy()).cast("B")
    )
    with zmq.Context() as context, context.socket(zmq.PAIR) as near, context.socket(zmq.PAIR) as far:
        far.bind("inproc://frames")
        near.connect("inproc://frames")
        header, payload = encode(sent)
        near.send(header, zmq.SNDMORE)
        send_payload(near, payload)
        assert far.poll(10_000)
        received = far.recv_multipart(copy=False)
        assert [len(frame.buffer) for frame in received[1:]] == [FRAME_BYTES, FRAME_BYTES, 40]
        message = decode(joined([frame.buffer for frame in received]))
        near.close(0)
    assert isinstance(message, Weights)
    assert isinstance(message.payload, bytearray)
    tensor = from_wire(message.payload, message.dtype, message.shape, "nchw", own=True)
    assert tensor.equal(values)
    assert tensor.data_ptr() == torch.frombuffer(message.payload, dtype=torch.int32).data_ptr()


def test_what_came_in_one_frame_is_copied_for_who_keeps_it():
    buffer = bytes(16)
    tensor = from_wire(buffer, "int32", (4,), "nchw", own=True)
    assert tensor.data_ptr() != from_wire(buffer, "int32", (4,), "nchw", own=False).data_ptr()
