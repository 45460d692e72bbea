"""Verdicts on runs whose numbers are known: the interval decides, and what is missing is never passed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from bench.bars import (
    CASES,
    FAIL,
    LEAST_ROUNDS,
    LOCAL,
    NOT_MEASURED,
    PASS,
    STREAM,
    UNDECIDED,
    Case,
    Verdict,
    evidence,
    prediction,
    prediction_line,
    verdict_line,
    verdicts,
)  # fmt: skip
from bench.run import main, measure
from edgedi.bench.as_json import report_json
from edgedi.bench.numbers import Ratio
from edgedi.bench.testbed.specs import ready_specs
from edgedi.cli.bench import parser
from edgedi.partition.planners.by_name import planners
from tests.bench.reports import report

CASE = Case(name="local x", options=LOCAL, model="a:b", least_speedup=1.4, least_share=0.1)
TESTBED = Case(name="pi x", options=("--testbed", "pi"), model="a:b", least_speedup=1.4, least_share=0.1)


def found() -> dict[str, Any]:
    """oodp is 1.5 times as fast as the engine, 1.25 times as fast as equal; three rounds, and the same again."""
    values = json.loads(report_json(report()))
    for split in values["planners"]:
        split["seconds"] *= 2
    return values


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [(1.5, 1.6, PASS), (1.6, 1.7, PASS), (1.4, 1.49, FAIL), (1.4, 1.5, UNDECIDED), (1.49, 1.6, UNDECIDED)],
)
def test_the_whole_interval_decides(low: float, high: float, word: str):
    ratio = Ratio(median=(low + high) / 2, low=low, high=high)
    assert Verdict(case="c", bar="b", least=1.5, found=ratio).word == word


def test_a_run_is_held_to_every_bar_of_its_case():
    by_bar = {verdict.bar: verdict for verdict in verdicts(CASE, found())}
    assert set(by_bar) == {
        "times the best engine", "never loses to one device", "share of the bound", "one worker alone"
    }  # fmt: skip
    assert by_bar["times the best engine"].word == PASS
    assert by_bar["times the best engine"].found.median == pytest.approx(1.5)
    assert by_bar["one worker alone"].found.median == pytest.approx(0.75)
    assert by_bar["one worker alone"].word == FAIL
    assert "PASS" in verdict_line(by_bar["times the best engine"])
    assert "found 1.50 [" in verdict_line(by_bar["times the best engine"])


def test_wrong_answers_are_never_fast():
    for verdict in verdicts(CASE, {**found(), "same": False}):
        assert verdict.word == FAIL
        assert verdict_line(verdict).endswith("answers differ from the model's own")


def test_a_run_that_ended_early_decides_nothing():
    assert {verdict.word for verdict in verdicts(CASE, {**found(), "ended_early": "worker 1 left"})} == {UNDECIDED}


def test_the_median_of_few_rounds_decides_nothing():
    values = found()
    for split in values["planners"]:
        split["seconds"] = split["seconds"][:1] * (LEAST_ROUNDS - 1)
    (first, *_) = verdicts(CASE, values)
    assert (first.word, first.reason) == (UNDECIDED, "5 rounds, 6 are the least")
    assert verdict_line(first).endswith("]  5 rounds, 6 are the least")


def test_verdicts_stand_beside_what_they_were_measured_on():
    command, machine, emulation = evidence({**found(), "emulation": "Emulated devices"})
    assert command == "# edgedi-bench --model torchvision:resnet50 --html 'a & b.html'"
    assert machine.startswith("# 2026-11-21 02:20 UTC, Some Processor <1>, 2 cores, Linux 6 x86_64, Python 3.11")
    assert emulation == "# Emulated devices"
    assert len(list(evidence({**found(), "emulation": ""}))) == 2


def test_recorded_runs_of_several_folders_are_judged_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "a").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "a" / "local-vgg16-224.json").write_text(json.dumps(found()), encoding="utf-8")
    assert main(["--recorded", str(tmp_path / "a"), str(tmp_path / "empty")]) == 1
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines[0].startswith(
        "FAIL          local vgg16 224               times the best engine       at least 1.75  found 1.50"
    )
    assert lines[-1].split()[1:5] == ["predicted", "against", "measured:", "median"]
    written = (tmp_path / "a" / "bars.txt").read_text(encoding="utf-8").splitlines()
    assert written[0] == "# edgedi-bench --model torchvision:resnet50 --html 'a & b.html'"
    assert written[2:] == lines
    assert not (tmp_path / "empty" / "bars.txt").exists()
    assert f"{tmp_path / 'empty'} holds no run of local vgg16 224, " in printed.err


def stream(*, at_once_s: float, best: str | None = "onnx") -> dict[str, Any]:
    """As edgedi-bench writes it: throughput takes 0.02 s for each request, the engine 0.04 s on one device."""
    ratio = {"median": 2.0, "low": 2.0, "high": 2.0} if best else None
    rows = [
        {"name": "throughput", "seconds": [0.02] * 6, "times_as_fast_as_best_engine": ratio},
        {"name": "onnx, 2 at once", "seconds": [at_once_s] * 6},
    ]
    return {"rows": rows if best else rows[:1], "best_engine": best, "same": True}


def test_a_stream_is_held_to_one_engine_and_to_as_many_as_there_are_devices():
    case = Case(name="s", options=STREAM, model="a:b", least_speedup=1.9, least_share=0.95)
    one, every = verdicts(case, stream(at_once_s=0.02))
    assert (one.word, one.found) == (PASS, Ratio(median=2.0, low=2.0, high=2.0))
    assert (every.word, every.found) == (PASS, Ratio(median=1.0, low=1.0, high=1.0))
    assert [verdict.word for verdict in verdicts(case, stream(at_once_s=0.015))] == [PASS, FAIL]
    assert [verdict.word for verdict in verdicts(case, None, "no workers")] == [NOT_MEASURED] * 2
    (alone, _) = verdicts(case, stream(at_once_s=0.02, best=None))
    assert (alone.word, alone.reason) == (NOT_MEASURED, "no engine was there to compare with")


def test_testbeds_are_held_to_the_best_baseline_too():
    (baseline,) = [verdict for verdict in verdicts(TESTBED, found()) if verdict.bar == "times the best baseline"]
    assert baseline.found.median == pytest.approx(1.25)
    assert baseline.word == PASS


def test_what_was_not_measured_is_said_with_its_reason():
    for verdict in verdicts(TESTBED, None, "edgedi-bench: no such testbed"):
        assert verdict.word == NOT_MEASURED
        assert verdict_line(verdict).endswith("edgedi-bench: no such testbed")
    alone = found()
    for split in alone["planners"]:
        split["times_as_fast_as_best_engine"] = None
    first = next(iter(verdicts(CASE, alone)))
    assert (first.word, first.reason) == (NOT_MEASURED, "no engine was there to compare with")


def test_predictions_are_judged_by_their_median_error():
    def run(predicted_s: float) -> dict[str, Any]:
        return {"planners": [{"name": "oodp", "predicted_s": predicted_s, "median_s": 1.0}]}

    assert prediction([run(1.1), run(0.86), run(3.0)]) == (PASS, pytest.approx(0.14))
    assert prediction([run(1.2), run(0.8)]) == (FAIL, pytest.approx(0.2))
    word, error = prediction([])
    assert word == NOT_MEASURED
    assert math.isnan(error)
    assert prediction_line([{"rows": []}]) == ""
    assert prediction_line([run(1.1)]).startswith("PASS          predicted against measured: median error 10%")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_case_is_a_command_that_is_accepted(case: Case):
    read = parser().parse_args(list(case.arguments))
    assert read.input == ((1, 3, case.size, case.size),)
    assert set(read.planners) <= set(planners())
    assert (read.testbed is None) == (case.options in (LOCAL, STREAM))


def test_every_ready_testbed_has_a_case():
    named = {case.options[1].partition("@")[0] for case in CASES if case.options[0] == "--testbed"}
    assert named == set(ready_specs())


def test_names_of_cases_are_their_own():
    assert len({case.name for case in CASES}) == len(CASES)


def test_a_case_that_cannot_run_is_not_measured_and_says_why(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    case = Case(name="local typo", options=LOCAL, model="tiny:nothing", least_speedup=1.0, least_share=0.5)
    measured, reason = measure(case, tmp_path, 1)
    assert measured is None
    assert reason.startswith("edgedi-bench: --model tiny:nothing: module tiny does not import")
    assert "loading tiny:nothing" in capfd.readouterr().err


def test_a_word_that_no_case_holds_lists_them(capsys: pytest.CaptureFixture[str]):
    assert main(["--only", "cray"]) == 2
    assert "'cray'; there are: local vgg16 224, local resnet50 224" in capsys.readouterr().err
