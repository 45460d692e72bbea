"""The bench of large pieces: what it passes arrives, and its rounds are as many as it says."""

from __future__ import annotations

import os

import pytest

from bench import large_pieces
from bench.large_pieces import measured, new_file, used_again
from edgedi.runtime.links.halo_links import supported

pytestmark = pytest.mark.skipif(not supported(), reason="this system has no packet sockets with credentials")


def test_both_ways_pass_a_piece_on():
    payload = os.urandom(300_000)
    with used_again() as again:
        assert again(payload) == payload
        assert again(payload[:100]) == payload[:100]
        with pytest.raises(RuntimeError, match="is not sent"):
            again(bytes(1 << 26))
    assert new_file(payload) == payload[:1]


def test_every_way_has_its_turn_in_every_round(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(large_pieces, "ROUNDS", 3)
    monkeypatch.setattr(large_pieces, "WARM", 1)
    turns: list[tuple[str, int]] = []

    def way(name: str) -> large_pieces.Pass:
        return lambda payload: turns.append((name, len(payload))) or payload

    found = measured({"a": way("a"), "b": way("b")}, 10)
    assert turns == [("a", 10), ("b", 10)] * 4
    assert {name: len(taken) for name, taken in found.items()} == {"a": 3, "b": 3}


def test_without_the_sockets_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(large_pieces, "supported", lambda: False)
    assert large_pieces.main() == 2
    assert "no packet sockets" in capsys.readouterr().err
