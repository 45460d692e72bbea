"""Key files that only their owner can read, addresses without a typo, and workers known by their key."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

import pytest

from edgedi.errors import SecurityError
from edgedi.runtime.links.keys import (
    KeyPair,
    WorkerAddress,
    add_known_worker,
    check_key,
    fingerprint,
    generate_keypair,
    load_authorized_keys,
    load_keypair,
    load_known_workers,
    parse_authorized_keys,
    parse_worker_address,
    resolve_worker,
    save_keypair,
)

ONE, TWO = generate_keypair(), generate_keypair()
posix_modes = pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX's")


def say(text: str) -> str:
    return re.escape(text)


# --- key pairs --------------------------------------------------------------------------------------------------------


def test_a_key_pair_is_two_halves_that_belong_together():
    assert ONE != TWO
    assert check_key(ONE.public) == ONE.public
    with pytest.raises(ValueError, match="does not belong"):
        KeyPair(public=ONE.public, secret=TWO.secret)


def test_a_public_key_never_looks_like_a_comment(monkeypatch: pytest.MonkeyPatch):
    unlucky = (b"#" + b"0" * 39, b"0" * 40)
    answers = iter([unlucky, (ONE.public.encode(), ONE.secret.encode())])
    monkeypatch.setattr("zmq.curve_keypair", lambda: next(answers))
    assert generate_keypair() == ONE


def test_a_secret_shows_in_no_repr_and_in_no_error():
    assert ONE.secret not in repr(ONE)
    with pytest.raises(ValueError, match="40 characters of Z85") as caught:
        check_key(ONE.secret + " ")
    assert ONE.secret[:10] not in str(caught.value)


@pytest.mark.parametrize("text", ["", "short", "a" * 39, "a" * 41, "a" * 39 + " ", "a" * 39 + "~", "é" * 40, "#" * 40])
def test_what_is_no_key(text: str):
    with pytest.raises(ValueError, match="a key is 40 characters of Z85"):
        check_key(text)


def test_a_fingerprint_is_short_stable_and_of_the_public_key():
    key = "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7"  # a public key that ZeroMQ's own documentation prints
    assert fingerprint(key) == "SHA256:UiUB9OemP2Hdd21+1oKRBMgVAiTJW5bZXRioJUnsVdM"
    assert fingerprint(ONE.public) != fingerprint(TWO.public)


# --- key files --------------------------------------------------------------------------------------------------------


@posix_modes
@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_a_key_file_is_its_owners_alone_whatever_the_umask(tmp_path: Path, umask: int):
    before = os.umask(umask)
    try:
        path = save_keypair(tmp_path / "new" / "me.key", ONE)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert load_keypair(path) == ONE
    assert [entry.name for entry in path.parent.iterdir()] == ["me.key"]


def test_a_key_is_not_overwritten_unless_asked(tmp_path: Path):
    path = save_keypair(tmp_path / "me.key", ONE)
    with pytest.raises(FileExistsError, match=say("me.key exists")):
        save_keypair(path, TWO)
    assert load_keypair(path) == ONE
    save_keypair(path, TWO, overwrite=True)
    assert load_keypair(path) == TWO


def test_home_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert save_keypair("~/me.key", ONE) == tmp_path / "me.key"
    assert load_keypair("~/me.key") == ONE


@posix_modes
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o610])
def test_a_secret_that_others_can_read_is_refused(tmp_path: Path, mode: int):
    path = save_keypair(tmp_path / "me.key", ONE)
    path.chmod(mode)
    with pytest.raises(SecurityError, match=say(f"others than you can read {path}; mend it with: chmod 600 {path}")):
        load_keypair(path)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is no key file"),
        ("public PUBLIC\n", "is no key file"),
        ("public PUBLIC\nsecret OTHER\n", "is no key file"),
        ("public PUBLIC\nsecret SHORT\n", "is no key file"),
        ("# mine\npublic PUBLIC\nprivate SECRET\n", "line 3: a key file has one line 'public KEY'"),
        ("public PUBLIC\npublic PUBLIC\n", "line 2: a key file"),
        ("public PUBLIC me\n", "line 1: a key file"),
    ],
)
def test_a_broken_key_file_says_where(tmp_path: Path, text: str, reason: str):
    path = tmp_path / "me.key"
    words = {"PUBLIC": ONE.public, "SECRET": ONE.secret, "SHORT": ONE.secret[:-1], "OTHER": TWO.secret}
    path.write_text(re.sub("[A-Z]{5,}", lambda word: words.get(word[0], word[0]), text))
    path.chmod(0o600)
    with pytest.raises(SecurityError, match=say(reason)) as caught:
        load_keypair(path)
    assert ONE.secret[:10] not in str(caught.value)


def test_a_missing_key_says_how_to_make_one(tmp_path: Path):
    with pytest.raises(SecurityError, match=say(f"no key at {tmp_path}/me.key; make one with: edgedi-keygen --out")):
        load_keypair(tmp_path / "me.key")


def test_what_is_no_text_file_is_refused(tmp_path: Path):
    path = tmp_path / "me.key"
    path.write_bytes(b"\xff\xfe\x00")
    path.chmod(0o600)
    with pytest.raises(SecurityError, match="is not text"):
        load_keypair(path)
    with pytest.raises(SecurityError, match="cannot read"):
        load_keypair(tmp_path)


# --- authorised keys --------------------------------------------------------------------------------------------------


def test_authorised_keys_are_lines_of_key_and_comment():
    text = f"# friends\n\n{ONE.public} ann@desk, the blue one\n  {TWO.public}\r\n"
    assert parse_authorized_keys(text) == {ONE.public: "ann@desk, the blue one", TWO.public: ""}


def test_a_wrong_line_among_authorised_keys_is_named():
    with pytest.raises(SecurityError, match="friends, line 2: a key is 40 characters"):
        parse_authorized_keys(f"{ONE.public}\nann {TWO.public}\n", where="friends")


def test_a_file_of_authorised_keys_must_hold_one(tmp_path: Path):
    path = tmp_path / "authorized_keys"
    path.write_text("# nobody yet\n")
    path.chmod(0o600)
    with pytest.raises(SecurityError, match="holds no key: nobody could connect"):
        load_authorized_keys(path)
    with pytest.raises(SecurityError, match=r"cannot read .*missing"):
        load_authorized_keys(tmp_path / "missing")
    path.write_text(f"{ONE.public} ann\n")
    assert load_authorized_keys(path) == {ONE.public: "ann"}


@posix_modes
def test_a_file_of_authorised_keys_that_others_can_change_is_refused(tmp_path: Path):
    path = tmp_path / "authorized_keys"
    path.write_text(f"{ONE.public} ann\n")
    path.chmod(0o644)
    assert load_authorized_keys(path) == {ONE.public: "ann"}
    path.chmod(0o664)
    with pytest.raises(SecurityError, match=say(f"can change {path}; mend it with: chmod go-w {path}")):
        load_authorized_keys(path)


# --- addresses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "host", "port", "endpoint"),
    [
        ("10.0.0.11:5555", "10.0.0.11", 5555, "tcp://10.0.0.11:5555"),
        ("pi-4_a.local:1", "pi-4_a.local", 1, "tcp://pi-4_a.local:1"),
        ("localhost:65535", "localhost", 65535, "tcp://localhost:65535"),
        ("[::1]:5555", "::1", 5555, "tcp://[::1]:5555"),
        ("[FE80:0::1]:5555", "fe80::1", 5555, "tcp://[fe80::1]:5555"),
    ],
)
def test_addresses_with_and_without_key(text: str, host: str, port: int, endpoint: str):
    bare = parse_worker_address(text)
    assert (bare.host, bare.port, bare.public_key, bare.endpoint) == (host, port, None, endpoint)
    assert parse_worker_address(f"{text}#{ONE.public}") == WorkerAddress(host=host, port=port, public_key=ONE.public)
    assert parse_worker_address(str(bare)) == bare


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "has no port; a worker is host:port"),
        ("10.0.0.11", "has no port; a worker is host:port or host:port#<public key>, such as 10.0.0.11:5555"),
        (":5555", "has no port"),
        ("[::1]", "has no port"),
        ("10.0.0.11:", "port must be a number from 1 to 65535, not ''"),
        ("10.0.0.11:0", "port must be a number from 1 to 65535, not '0'"),
        ("10.0.0.11:65536", "not '65536'"),
        ("10.0.0.11:9999999999999999999", "port must be a number"),
        ("10.0.0.11:-1", "not '-1'"),
        ("10.0.0.11:http", "not 'http'"),
        ("10.0.0.11:٣", "port must be a number"),
        ("tcp://10.0.0.11:5555", "leave out tcp://"),
        ("::1:5555", "an IPv6 address stands in brackets"),
        ("[::g]:5555", "'::g'"),
        ("10.0.0.11 :5555", "'10.0.0.11 ' is no host name"),
        ("*:5555", "'*' is no host name"),
        ("-x:5555", "'-x' is no host name"),
        ("10.0.0.11:5555#", "a key is 40 characters of Z85, these are 0 characters"),
        ("10.0.0.11:5555#abc", "a key is 40 characters of Z85, these are 3 characters"),
    ],
)
def test_a_typo_in_an_address_is_named(text: str, reason: str):
    with pytest.raises(ValueError, match=say(reason)) as caught:
        parse_worker_address(text)
    assert repr(text) in str(caught.value)


# --- known workers ----------------------------------------------------------------------------------------------------


def test_known_workers_are_remembered(tmp_path: Path):
    path = tmp_path / "new" / "known_workers"
    assert load_known_workers(path) == {}
    address = parse_worker_address(f"10.0.0.11:5555#{ONE.public}")
    assert add_known_worker(address, path) is True
    assert add_known_worker(address, path) is False
    assert add_known_worker(parse_worker_address(f"[::1]:5555#{TWO.public}"), path) is True
    assert load_known_workers(path) == {"10.0.0.11:5555": ONE.public, "[::1]:5555": TWO.public}


def test_another_key_for_a_known_worker_is_refused_unless_asked(tmp_path: Path):
    path = tmp_path / "known_workers"
    add_known_worker(parse_worker_address(f"10.0.0.11:5555#{ONE.public}"), path)
    impostor = parse_worker_address(f"10.0.0.11:5555#{TWO.public}")
    with pytest.raises(SecurityError) as caught:
        add_known_worker(impostor, path)
    assert fingerprint(ONE.public) in str(caught.value)
    assert fingerprint(TWO.public) in str(caught.value)
    assert load_known_workers(path) == {"10.0.0.11:5555": ONE.public}
    assert add_known_worker(impostor, path, replace=True) is True
    assert load_known_workers(path) == {"10.0.0.11:5555": TWO.public}


def test_a_worker_without_a_key_cannot_be_remembered(tmp_path: Path):
    with pytest.raises(ValueError, match="comes without a public key"):
        add_known_worker(parse_worker_address("10.0.0.11:5555"), tmp_path / "known_workers")


@pytest.mark.parametrize("line", ["10.0.0.11:5555", "10.0.0.11 KEY", "10.0.0.11:5555 short", "10.0.0.11:5555 KEY KEY"])
def test_a_wrong_line_among_known_workers_is_named(tmp_path: Path, line: str):
    path = tmp_path / "known_workers"
    path.write_text("# mine\n" + line.replace("KEY", ONE.public) + "\n")
    path.chmod(0o600)
    with pytest.raises(SecurityError, match=r"known_workers, line 2: .*; a line is: host:port public-key"):
        load_known_workers(path)


def test_a_worker_is_resolved_from_its_text_or_from_the_known():
    known = {"10.0.0.11:5555": ONE.public}
    assert resolve_worker("10.0.0.11:5555", known, need_key=True).public_key == ONE.public
    assert resolve_worker(f"10.0.0.11:5555#{ONE.public}", known, need_key=True).public_key == ONE.public
    assert resolve_worker(f"10.0.0.12:5555#{TWO.public}", known, need_key=True).public_key == TWO.public
    assert resolve_worker("10.0.0.12:5555", known, need_key=False).public_key is None


def test_an_unknown_worker_is_refused_with_the_command_that_adds_it():
    with pytest.raises(SecurityError) as caught:
        resolve_worker("10.0.0.12:5555", {}, need_key=True)
    assert "no public key is known for 10.0.0.12:5555" in str(caught.value)
    assert "edgedi-keygen --trust '10.0.0.12:5555#<public key>'" in str(caught.value)


def test_a_worker_of_another_key_than_the_known_is_refused():
    with pytest.raises(SecurityError, match="is not the known one") as caught:
        resolve_worker(f"10.0.0.11:5555#{TWO.public}", {"10.0.0.11:5555": ONE.public}, need_key=False)
    assert fingerprint(ONE.public) in str(caught.value)
    assert "edgedi-keygen --force --trust '10.0.0.11:5555#" in str(caught.value)
