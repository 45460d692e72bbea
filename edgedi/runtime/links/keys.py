"""Keys and addresses, and the files that hold them.

Keys are Curve25519, written as 40 characters of Z85 (ZeroMQ RFC 32). Z85 holds ``#``, ``$`` and ``!``: quote keys in a
shell. Public keys made here never begin with ``#``, so that a line of comment is never a key.

A client knows its worker beforehand: by ``host:port#<public key>`` or from ``~/.edgedi/known_workers``. A worker knows
its clients from a file of authorised keys. A file is read only if none but its owner can change it, and a secret only
if none but its owner can read it.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import os
import re
import shlex
import struct
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import zmq
from zmq.utils import z85

from edgedi.errors import SecurityError

FilePath: TypeAlias = "str | os.PathLike[str]"

KNOWN_WORKERS = "~/.edgedi/known_workers"
_MAX_FILE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyPair:
    """A CURVE key pair, both halves as 40 characters of Z85; the secret never shows in a repr."""

    public: str
    secret: str = field(repr=False)

    def __post_init__(self) -> None:
        check_key(self.public)
        check_key(self.secret)
        if zmq.curve_public(self.secret.encode()).decode() != self.public:
            raise ValueError("the public key does not belong to the secret one")


def check_key(text: str) -> str:
    """Return ``text`` if it is a key; ``ValueError``, without the text, which may be a secret, if not."""
    try:
        if len(text) == 40 and len(z85.decode(text)) == 32:
            return text
    except (KeyError, ValueError, struct.error, UnicodeEncodeError):
        pass
    raise ValueError(f"a key is 40 characters of Z85, these are {len(text)} characters that are no key")


def generate_keypair() -> KeyPair:
    """Return a new key pair."""
    while True:
        public, secret = (half.decode() for half in zmq.curve_keypair())
        if not public.startswith("#"):
            return KeyPair(public=public, secret=secret)


def fingerprint(public_key: str) -> str:
    """Return the short name of a public key that people compare: ``SHA256:`` and base64, as ssh writes it."""
    digest = hashlib.sha256(z85.decode(check_key(public_key))).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def save_keypair(path: FilePath, keypair: KeyPair, *, overwrite: bool = False) -> Path:
    """Write a key file that only its owner can read; return where it lies.

    Raises ``FileExistsError`` if something is there already and ``overwrite`` is not set, ``SecurityError`` if the file
    cannot be written.
    """
    target = Path(path).expanduser()
    if target.exists() and not overwrite:
        raise FileExistsError(f"{target} exists, and whoever trusts its key would no longer know you by a new one")
    text = "# edgedi key pair. Whoever has the secret line is you: keep this file to yourself (chmod 600).\n"
    _write_private(target, text + f"public {keypair.public}\nsecret {keypair.secret}\n")
    return target


def load_keypair(path: FilePath) -> KeyPair:
    """Return the key pair of a key file.

    Raises ``SecurityError`` if the file is missing, is no key file, or can be read by others than its owner.
    """
    target = Path(path).expanduser()
    if not target.exists():
        raise SecurityError(f"no key at {target}; make one with: edgedi-keygen --out {shlex.quote(str(path))}")
    entries: dict[str, str] = {}
    for number, words in _lines(_read_guarded(target, forbidden=0o077)):
        if len(words) != 2 or words[0] not in ("public", "secret") or words[0] in entries:
            raise SecurityError(f"{target}, line {number}: a key file has one line 'public KEY' and one 'secret KEY'")
        entries[words[0]] = words[1]
    try:
        return KeyPair(**entries)
    except (ValueError, TypeError):
        raise SecurityError(
            f"{target} is no key file: it needs a public and a secret key that belong together"
        ) from None


def _write_private(target: Path, text: str) -> None:
    """Put a file in place whole or not at all, from its first byte on its owner's alone: mkstemp's mode is 0600."""
    try:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=target.name)
        try:
            with os.fdopen(descriptor, "w", encoding="ascii") as file:
                file.write(text)
            os.replace(temporary, target)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise SecurityError(f"cannot write {target}: {error.strerror}") from error


def _read_guarded(target: Path, *, forbidden: int) -> str:
    """Return a file's text if its mode has none of the ``forbidden`` bits; what is checked is what is read."""
    try:
        with open(target, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if os.name == "posix" and mode & forbidden:
                right, mend = ("read", "600") if forbidden & 0o044 else ("change", "go-w")
                raise SecurityError(f"others than you can {right} {target}; mend it with: chmod {mend} {target}")
            return file.read(_MAX_FILE_BYTES).decode("utf-8")
    except OSError as error:
        raise SecurityError(f"cannot read {target}: {error.strerror}") from error
    except UnicodeDecodeError:
        raise SecurityError(f"{target} is not text") from None


def _lines(text: str) -> Iterator[tuple[int, list[str]]]:
    """Yield number and words of every line that is neither empty nor a comment."""
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split()
        if words and not words[0].startswith("#"):
            yield number, words


def parse_authorized_keys(text: str, *, where: str = "authorised keys") -> dict[str, str]:
    """Return public key -> comment of a text of lines 'key comment'; ``SecurityError`` names the line."""
    keys: dict[str, str] = {}
    for number, words in _lines(text):
        try:
            keys[check_key(words[0])] = " ".join(words[1:])
        except ValueError as error:
            raise SecurityError(f"{where}, line {number}: {error}") from None
    return keys


def load_authorized_keys(path: FilePath) -> dict[str, str]:
    """Return public key -> comment of a file that none but its owner may write; ``SecurityError`` names the line."""
    target = Path(path).expanduser()
    keys = parse_authorized_keys(_read_guarded(target, forbidden=0o022), where=str(target))
    if not keys:
        raise SecurityError(f"{target} holds no key: nobody could connect; edgedi-keygen prints the line to put there")
    return keys


# ---------------------------------------------------------------- addresses of workers

_HOST_NAME = re.compile(r"[0-9A-Za-z_](?:[0-9A-Za-z_.\-]*[0-9A-Za-z_])?")


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerAddress:
    """Where a worker listens, and the public key that it must prove (None: an open link)."""

    host: str
    port: int
    public_key: str | None = None

    @property
    def endpoint(self) -> str:
        """What ZeroMQ connects to."""
        return f"tcp://{self}"

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_worker_address(text: str) -> WorkerAddress:
    """Return what ``host:port`` or ``host:port#<public key>`` says; ``ValueError`` says what is wrong with it.

    An IPv6 host stands in brackets: ``[::1]:5555``.
    """
    place, mark, key = text.partition("#")
    example = "a worker is host:port or host:port#<public key>, such as 10.0.0.11:5555"
    if "://" in place:
        raise ValueError(f"{text!r}: leave out {place.partition('://')[0]}://; {example}")
    host, colon, port = place.rpartition(":")
    if not colon or not host or "]" in port:
        raise ValueError(f"{text!r} has no port; {example}")
    if not (port.isascii() and port.isdigit() and 1 <= int(port[:6]) <= 65_535):
        raise ValueError(f"{text!r}: port must be a number from 1 to 65535, not {port!r}")
    try:
        return WorkerAddress(host=_check_host(host), port=int(port), public_key=check_key(key) if mark else None)
    except ValueError as error:
        raise ValueError(f"{text!r}: {error}") from None


def _check_host(host: str) -> str:
    if host.startswith("[") and host.endswith("]"):
        return str(ipaddress.IPv6Address(host[1:-1]))
    if ":" in host:
        raise ValueError("an IPv6 address stands in brackets, such as [::1]:5555")
    if not _HOST_NAME.fullmatch(host):
        raise ValueError(f"{host!r} is no host name")
    return host


def load_known_workers(path: FilePath = KNOWN_WORKERS) -> dict[str, str]:
    """Return ``host:port`` -> public key of a file of such lines; a file that is not there knows nobody.

    Raises ``SecurityError`` naming the line, or if others than its owner may write the file.
    """
    target = Path(path).expanduser()
    if not target.exists():
        return {}
    known: dict[str, str] = {}
    for number, words in _lines(_read_guarded(target, forbidden=0o022)):
        try:
            place, key = words
            known[str(parse_worker_address(place))] = check_key(key)
        except ValueError as error:
            raise SecurityError(f"{target}, line {number}: {error}; a line is: host:port public-key") from None
    return known


def add_known_worker(address: WorkerAddress, path: FilePath = KNOWN_WORKERS, *, replace: bool = False) -> bool:
    """Remember a worker's public key; return whether that was news.

    Raises ``SecurityError`` if another key is known for this address and ``replace`` is not set.
    """
    if address.public_key is None:
        raise ValueError(f"{address} comes without a public key; write {address}#<public key>")
    known = load_known_workers(path)
    old = known.get(str(address))
    if old == address.public_key:
        return False
    if old is not None and not replace:
        raise SecurityError(_key_changed(address, old))
    known[str(address)] = address.public_key
    text = "# host:port public-key, written by edgedi-keygen --trust\n"
    _write_private(Path(path).expanduser(), text + "".join(f"{place} {key}\n" for place, key in sorted(known.items())))
    return True


def resolve_worker(text: str, known: Mapping[str, str], *, need_key: bool) -> WorkerAddress:
    """Return the address that ``text`` gives, with its public key from there or from ``known``.

    Raises ``ValueError`` for what is no address, ``SecurityError`` where the two disagree or, with ``need_key``, where
    none has a key.
    """
    address = parse_worker_address(text)
    known_key = known.get(str(address))
    if known_key and address.public_key and known_key != address.public_key:
        raise SecurityError(_key_changed(address, known_key))
    key = address.public_key or known_key
    if need_key and key is None:
        command = shlex.join(["edgedi-keygen", "--trust", f"{address}#<public key>"])
        raise SecurityError(
            f"no public key is known for {address}; the worker prints its own at its start, add it: {command}"
        )
    return WorkerAddress(host=address.host, port=address.port, public_key=key)


def _key_changed(address: WorkerAddress, known_key: str) -> str:
    given = address.public_key or ""
    command = shlex.join(["edgedi-keygen", "--force", "--trust", f"{address}#{given}"])
    return (
        f"the key given for {address} ({fingerprint(given)}) is not the known one ({fingerprint(known_key)}): "
        f"either this is another machine or the worker has a new key; if you know that it has: {command}"
    )
