"""Which layers are computed in two, what each part reads, and how they are timed: by a clock that the test moves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bench import border_strips
from bench.bars import LOCAL, Case
from bench.border_strips import borders, main, row_of, seconds_of
from bench.layer_calls import layer_calls
from edgedi.partition.capture.capture import capture_model
from edgedi.partition.plan.lowering import lower
from edgedi.partition.plan.plan import Plan
from edgedi.partition.plan.program import Program, ProgramSet

HEAD = "plan 2 workers, 3 layers, predicted 0 s"
PLAN = f"""{HEAD}
segment 0  layers 0:1  rows 16  0:8  8:16
segment 1  layers 1:3  rows 16  0:8  8:16"""


def network() -> torch.nn.Module:
    """Two convolutions, of which the second reads a row of the other worker; then one that reads none."""
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 1), torch.nn.Conv2d(4, 4, 3, padding=1), torch.nn.Conv2d(4, 2, 1)
    ).eval()


CAPTURED = capture_model(network(), (torch.randn(1, 3, 16, 16),))


def programs() -> ProgramSet:
    return lower(Plan.parse(PLAN, graph_digest=CAPTURED.graph.digest), CAPTURED.graph)


def test_the_row_that_is_sent_and_the_rest_are_the_whole():
    (border,) = borders(programs())
    name = CAPTURED.graph.layers[0].name
    assert [str(run.piece) for run in (border.whole, border.strip, border.rest)] == [
        f"{name}@2[0:8]", f"{name}@2[7:8]", f"{name}@2[0:7]"
    ]  # fmt: skip
    assert [str(run.inputs[0].interval) for run in (border.whole, border.strip, border.rest)] == ["0:8", "7:8", "0:7"]


def test_parts_are_computed_as_workers_do():
    (border,) = borders(programs())
    program = Program(participant=0, instructions=(border.whole, border.strip, border.rest))
    whole, strip, rest = (call() for call in layer_calls(program, CAPTURED))
    assert [value.shape[2] for value in (whole, strip, rest)] == [8, 1, 7]


def test_every_call_has_its_turn_and_the_first_rounds_do_not_count():
    order: list[str] = []
    taken = iter([0.1] * 2 * border_strips.WARM + [3.0, 5.0, 2.0, 6.0])
    now_s = [0.0]

    def clock() -> float:
        return now_s[0]

    def call(name: str) -> None:
        order.append(name)
        now_s[0] += next(taken)

    found = seconds_of([lambda: call("a"), lambda: call("b")], rounds=2, clock=clock)
    assert found == pytest.approx([2.0, 5.0])
    assert order == ["a", "b"] * (border_strips.WARM + 2)


def test_a_row_says_what_two_calls_cost_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    case = Case(name="local tiny 16", options=LOCAL, model="tiny:it", size=16, least_speedup=1.0, least_share=0.5)
    monkeypatch.setattr(border_strips, "load_network", lambda name: network())
    monkeypatch.setattr(border_strips, "seconds_of", lambda calls, rounds: [0.002, 0.0005, 0.0018])
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"planners": [{"name": "oodp", "plan": PLAN}]}), encoding="utf-8")
    assert row_of(case, path, 5) == ("local tiny 16", "1", "2.00", "2.30", "+0.30")
    alone = f"{HEAD}\nsegment 0  layers 0:3  whole on 0"
    path.write_text(json.dumps({"planners": [{"name": "oodp", "plan": alone}]}), encoding="utf-8")
    assert row_of(case, path, 5) == ()


def test_a_folder_without_runs_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["--results", str(tmp_path)])
    assert "holds no run of local workers" in capsys.readouterr().err
