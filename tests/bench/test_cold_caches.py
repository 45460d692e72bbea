"""What sleeping costs a computation, by a clock that the test moves."""

from __future__ import annotations

import pytest

from bench import cold_caches
from bench.cold_caches import layers_of, main, measured, seconds


def test_pauses_come_before_every_third_layer_and_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    used_s = [0.0]

    def layer() -> None:
        done.append("layer")
        used_s[0] += 0.5

    monkeypatch.setattr(cold_caches.time, "sleep", lambda pause_s: done.append(f"pause {pause_s}"))
    assert seconds([layer] * 4, 0.25, cpu=lambda: used_s[0]) == 2.0
    assert done == ["pause 0.25", "layer", "layer", "layer", "pause 0.25", "layer"]
    done.clear()
    assert seconds([layer] * 4, 0.0, cpu=lambda: used_s[0]) == 2.0
    assert done == ["layer"] * 4


def test_medians_of_rounds_in_turn_without_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[float] = []
    scripted = iter([9.0, 9.0, 1.0, 5.0, 3.0, 4.0, 2.0, 6.0])

    def taken(layers: object, pause_s: float) -> float:
        turns.append(pause_s)
        return next(scripted)

    monkeypatch.setattr(cold_caches, "PAUSES_S", (0.0, 0.5))
    monkeypatch.setattr(cold_caches, "ROUNDS", 3)
    monkeypatch.setattr(cold_caches, "seconds", taken)
    assert measured([]) == [2.0, 5.0]
    assert turns == [0.0, 0.5] * 4


def test_the_table_says_how_much_more(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(cold_caches, "MODELS", ("torchvision:squeezenet1_1",))
    monkeypatch.setattr(cold_caches, "measured", lambda layers: [0.01, 0.011, 0.0125, 0.02] if len(layers) > 20 else [])
    assert main() == 0
    assert "10.0 ms" in (text := capsys.readouterr().out)
    assert all(each in text for each in ("11.0 ms (+10%)", "12.5 ms (+25%)", "20.0 ms (+100%)", "squeezenet1_1"))


def test_layers_are_a_quarter_of_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = layers_of("torchvision:squeezenet1_1")
    first = layers[0]()
    assert tuple(first.shape) == (1, 64, 111 // 4, 111)
