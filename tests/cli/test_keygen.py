"""edgedi-keygen: what it writes, prints, refuses; its exit codes; and that its options do not grow by accident."""

from __future__ import annotations

import re
import stat
from pathlib import Path

import pytest

from edgedi.cli.keygen import build_parser, main
from edgedi.runtime.links.keys import (
    fingerprint,
    generate_keypair,
    load_keypair,
    load_known_workers,
    parse_authorized_keys,
)

KEY, OTHER = generate_keypair().public, generate_keypair().public


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_the_options_are_these():
    options = {option for action in build_parser()._actions for option in action.option_strings}
    assert options == {"-h", "--help", "--out", "--force", "--show", "--trust"}


def test_a_new_key_is_written_and_its_line_printed(home: Path, capsys: pytest.CaptureFixture[str]):
    assert main([]) == 0
    path = home / ".edgedi" / "me.key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    keypair = load_keypair(path)
    printed = capsys.readouterr()
    ((public, comment),) = parse_authorized_keys(printed.out).items()
    assert public == keypair.public
    assert re.fullmatch(r"\S+@\S+", comment)
    assert fingerprint(public) in printed.err
    assert keypair.secret not in printed.out + printed.err


def test_out_says_where(home: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["--out", str(home / "a" / "pi.key")]) == 0
    assert load_keypair(home / "a" / "pi.key").public in capsys.readouterr().out
    assert not (home / ".edgedi").exists()


def test_a_key_is_replaced_only_by_force(home: Path, capsys: pytest.CaptureFixture[str]):
    assert main([]) == 0
    first = load_keypair("~/.edgedi/me.key")
    capsys.readouterr()
    assert main([]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "me.key exists" in printed.err
    assert "--force" in printed.err
    assert load_keypair("~/.edgedi/me.key") == first
    assert main(["--force"]) == 0
    assert load_keypair("~/.edgedi/me.key") != first


def test_show_prints_the_same_line_again(capsys: pytest.CaptureFixture[str]):
    main([])
    line = capsys.readouterr().out
    assert main(["--show", "~/.edgedi/me.key"]) == 0
    assert capsys.readouterr().out == line


@pytest.mark.parametrize(("mode", "reason"), [(None, "no key at"), (0o644, "chmod 600")])
def test_a_key_that_cannot_be_shown_says_why(
    home: Path, capsys: pytest.CaptureFixture[str], mode: int | None, reason: str
):
    path = home / "me.key"
    if mode is not None:
        main(["--out", str(path)])
        path.chmod(mode)
    capsys.readouterr()
    assert main(["--show", str(path)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("edgedi-keygen: ")
    assert reason in printed.err


def test_trust_remembers_a_worker(home: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["--trust", f"10.0.0.11:5555#{KEY}"]) == 0
    assert f"10.0.0.11:5555 is now known by {fingerprint(KEY)}" in capsys.readouterr().err
    assert main(["--trust", f"10.0.0.11:5555#{KEY}"]) == 0
    assert "was already known" in capsys.readouterr().err
    assert load_known_workers() == {"10.0.0.11:5555": KEY}
    assert [path.name for path in (home / ".edgedi").iterdir()] == ["known_workers"]


def test_another_key_for_a_known_worker_needs_force(capsys: pytest.CaptureFixture[str]):
    main(["--trust", f"10.0.0.11:5555#{KEY}"])
    assert main(["--trust", f"10.0.0.11:5555#{OTHER}"]) == 2
    assert "is not the known one" in capsys.readouterr().err
    assert load_known_workers() == {"10.0.0.11:5555": KEY}
    assert main(["--force", "--trust", f"10.0.0.11:5555#{OTHER}"]) == 0
    assert load_known_workers() == {"10.0.0.11:5555": OTHER}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("10.0.0.11:5555", "comes without a public key"),
        ("10.0.0.11#KEY", "has no port"),
        ("10.0.0.11:5555#short", "a key is 40 characters"),
    ],
)
def test_a_worker_that_cannot_be_trusted_says_why(capsys: pytest.CaptureFixture[str], text: str, reason: str):
    assert main(["--trust", text.replace("KEY", KEY)]) == 2
    assert reason in capsys.readouterr().err


def test_show_and_trust_exclude_each_other():
    with pytest.raises(SystemExit) as caught:
        main(["--show", "a", "--trust", "b"])
    assert caught.value.code == 2
