"""What the fields of messages must hold: a check for each kind of value. ``ValueError`` says what was given instead."""

from __future__ import annotations

import math
import re
from typing import Any, TypeAlias

from edgedi.runtime.wire.payloads import Buffer, buffer_bytes, tensor_bytes

Description: TypeAlias = dict[str, Any]
"""A JSON-able description: of a layer, a weight, a peer."""

_DIGEST = re.compile(r"[0-9a-f]{8,128}")
_PUBLIC_KEY = re.compile(r"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")
_WEIGHT_KEYS = frozenset({"digest", "dtype", "shape"})
_PEER_KEYS = frozenset({"participant", "address", "public_key", "halo_address"})


def require(holds: bool, what: str) -> None:
    """``what`` is the error's text where the condition does not hold."""
    if not holds:
        raise ValueError(what)


def check_name(label: str, text: str) -> None:
    """Names end up in logs and tables, so they hold no control characters."""
    if not text or not text.isprintable():
        raise ValueError(f"{label} must be printable and not empty, not {text[:24]!r}")


def check_digest(label: str, text: str) -> None:
    """Digests may become file names, so they hold nothing but hexadecimal digits."""
    if not _DIGEST.fullmatch(text):
        raise ValueError(f"{label} must be 8 to 128 lowercase hexadecimal digits, not {text[:24]!r}")


def check_count(label: str, value: int) -> None:
    """Counts and numbers of things start at zero."""
    if value < 0:
        raise ValueError(f"{label} must not be negative, not {value}")


def check_seconds(label: str, value: float) -> None:
    """A span or a clock's reading."""
    if not 0 <= value < math.inf:
        raise ValueError(f"{label} must be finite and not negative, not {value}")


def check_epoch(session: str, epoch: int) -> None:
    """One deployment of a session."""
    check_name("session", session)
    check_count("epoch", epoch)


def check_request(session: str, epoch: int, request: int) -> None:
    """One request under it."""
    check_epoch(session, epoch)
    check_count("request", request)


def check_payload(dtype: str, shape: tuple[int, ...], payload: Buffer) -> None:
    """A payload is exactly its tensor, so that no reader ever looks past its end."""
    expected, given = tensor_bytes(dtype, shape), buffer_bytes(payload)
    if expected != given:
        raise ValueError(f"{dtype} {shape} is {expected} bytes, but the payload has {given}")


def _keys(label: str, entry: Description, keys: frozenset[str]) -> None:
    if entry.keys() != keys:
        given = [key[:12] for key in list(entry)[:6]]
        raise ValueError(f"{label} must have exactly the keys {sorted(keys)}, not {given}")


def check_weight(weight: Description) -> None:
    """``{digest, dtype, shape}`` of one tensor of weights."""
    _keys("a weight", weight, _WEIGHT_KEYS)
    digest, dtype, shape = weight["digest"], weight["dtype"], weight["shape"]
    require(type(digest) is str and type(dtype) is str, "a weight's digest and dtype must be text")
    require(type(shape) is tuple and {type(size) for size in shape} <= {int}, "a weight's shape must be a tuple of int")
    check_digest("a weight's digest", digest)
    tensor_bytes(dtype, shape)


def check_peer(peer: Description, num_participants: int) -> None:
    """``{participant, address, public_key, halo_address}`` of another worker of the session."""
    _keys("a peer", peer, _PEER_KEYS)
    participant, address, public_key = peer["participant"], peer["address"], peer["public_key"]
    halo = peer["halo_address"]
    require(halo is None or type(halo) is str, "a peer's halo_address must be None or text")
    require(type(participant) is int and type(address) is str, "a peer's participant must be int, its address text")
    require(0 <= participant < num_participants, f"peer {participant} is not one of {num_participants} participants")
    check_name("a peer's address", address)
    if public_key is not None:
        known = type(public_key) is str and _PUBLIC_KEY.fullmatch(public_key) is not None
        require(known, "a peer's public_key must be None or 40 characters of Z85")
