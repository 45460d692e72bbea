"""edgedi-compact as its user meets it: what it prints and writes, its exit codes, every wrong option, Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import edgedi
from edgedi.cli import compact as command
from edgedi.cli.compact import main
from edgedi.transforms.arguments import TARGETS
from edgedi.transforms.saved.folder import EXPORTED, PAGE, PROGRAM, REPORT, WEIGHTS
from tests.bench.html.reading import read
from tests.cli import tiny_networks

HERE = Path(__file__).parent
DEAD = ("--model", "tiny_networks:dead", "--input", "1x3x16x16")
TAUGHT = ("--model", "tiny_networks:dead", "--data")
FILES = {EXPORTED, PAGE, PROGRAM, REPORT, WEIGHTS}


@pytest.fixture(autouse=True)
def networks_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """``tiny_networks`` is found as a user's own module is: in the current folder."""
    monkeypatch.chdir(HERE)


def run(*options: str, out: Path) -> dict[str, Any]:
    """A run that must end well; its report."""
    assert main([*options, "--out", str(out)]) == 0
    assert {path.name for path in out.iterdir()} == FILES
    return json.loads((out / REPORT).read_text())


def seeded_dead() -> torch.nn.Module:
    torch.manual_seed(0)  # as the command line does before it calls the callable
    return tiny_networks.dead().eval()


# --- what a run gives -------------------------------------------------------------------------------------------------


def test_without_data_the_exact_step_runs_and_the_network_comes_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    found = run(*DEAD, out=tmp_path / "new" / "small")
    printed = capsys.readouterr()
    assert [step["name"] for step in found["steps"]] == ["simplify"]
    assert found["score"] is None
    assert (found["layers"][0]["before"]["width"], found["layers"][0]["after"]["width"]) == ("3 -> 8", "3 -> 7")
    assert printed.out.startswith("step or layer")
    assert "3 -> 8: 3 -> 7" in printed.out
    assert "edgedi-compact: simplify: 853 -> 753 parameters" in printed.err
    assert "edgedi-compact: wrote model.pt2, program.json, report.html, report.json, weights.saf" in printed.err
    x, small = torch.randn(1, 3, 16, 16), edgedi.load(tmp_path / "new" / "small")
    assert (small(x) - seeded_dead()(x)).abs().max() <= 1e-6
    assert read((tmp_path / "new" / "small" / PAGE).read_text()).all("h1")[0].text == "Sequential, compacted"


@pytest.mark.parametrize(("data", "score"), [("scored", 1.0), ("Described", None)])
def test_data_is_a_dictionary_or_an_object(data: str, score: float | None, tmp_path: Path):
    options = ("--model", "tiny_networks:dead", "--data", f"tiny_networks:{data}", "--steps", "simplify")
    found = run(*options, "--tolerance", "0.5", "--seed", "3", out=tmp_path / "s")
    assert found["score"]["count"] == (None if score is None else 8)
    assert score is None or found["score"]["value"] == score
    assert [point["step"] for point in found["curve"]] == ["original", "simplify"]


def test_a_network_is_trained_within_its_budget_and_goes_on_from_a_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    options = ("--model", "tiny_networks:dead", "--data", "tiny_networks:taught", "--budget", "2")
    kept = ("--checkpoint", str(tmp_path / "kept"))
    found = run(*options, *kept, out=tmp_path / "one")
    assert [step["name"] for step in found["steps"]] == ["simplify", "prune", "scar", "recover"]
    capsys.readouterr()
    again = run(*options, *kept, out=tmp_path / "two")
    assert "edgedi-compact: recover: done before, from the checkpoint" in capsys.readouterr().err
    assert again == found
    one, two = (load_file(tmp_path / name / WEIGHTS) for name in ("one", "two"))
    assert all(torch.equal(one[name], tensor) for name, tensor in two.items())


def test_a_folder_with_something_in_it_is_left_alone_without_force(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "note.txt").write_text("mine")
    assert main([*DEAD, "--out", str(tmp_path)]) == 2
    assert f"{tmp_path} is not empty; give another folder, or overwrite=True (--force)" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]
    assert main([*DEAD, "--out", str(tmp_path), "--force"]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"note.txt", *FILES}
    assert (tmp_path / "note.txt").read_text() == "mine"


# --- what a user gets wrong -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], ["--model is missing; give module:callable"]),
        (["--model", "x:y"], ["--out is missing; give a folder"]),
        (["--modle", "x:y", "--out", "o"], ["there is no --modle; did you mean --model"]),
        ([*DEAD, "--oot", "o"], ["there is no --oot; did you mean --out?"]),
        ([*DEAD, "--dta", "o"], ["there is no --dta; did you mean --data"]),
        ([*DEAD, "--froce", "--out", "o"], ["there is no --froce; did you mean --force?"]),
        ([*DEAD, "--input", "1x3xhx9"], ["'1x3xhx9'", "1x3x224x224"]),
        ([*DEAD, "--tolerance", "little"], ["'little' is not a number from 0 up"]),
        ([*DEAD, "--tolerance", "-1"], ["'-1' is not a number from 0 up"]),
        ([*DEAD, "--tolerance", "nan"], ["'nan' is not a number from 0 up"]),
        ([*DEAD, "--target", "50%"], ["'50%' is not a share above 0, at most 1"]),
        ([*DEAD, "--target", "0"], ["'0' is not a share above 0, at most 1"]),
        ([*DEAD, "--target", "parameters=2"], ["'2' is not a share above 0, at most 1"]),
        ([*DEAD, "--target", "macs=0.5,0.1"], ["'macs=0.5,0.1' is not macs=SHARE or parameters=SHARE"]),
        ([*DEAD, "--target", "bytes=0.5"], ["'bytes=0.5' is not macs=SHARE or parameters=SHARE"]),
        ([*DEAD, "--method", "l2"], ["invalid choice: 'l2'", "reconstruct", "l1"]),
        ([*DEAD, "--scar-ratio", "16"], ["'16' is not 4, 8 or auto"]),
        ([*DEAD, "--budget", "0"], ["'0' is not a number of seconds above 0"]),
        ([*DEAD, "--budget", "1h"], ["'1h' is not a number of seconds above 0"]),
        ([*DEAD, "--seed", "1.5"], ["'1.5' is not a whole number from 0 up"]),
    ],
)
def test_a_wrong_option_says_what_is_accepted(options: list[str], words: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(options)
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert [word for word in words if word not in said] == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--model", "resnet50"], ["--model 'resnet50'", "torchvision:NAME or module:callable"]),
        (["--model", "torchvision:resnt50"], ["has no 'resnt50'", "did you mean resnet"]),
        (["--model", "tiny_networks:daed"], ["has no 'daed'", "did you mean dead?"]),
        (["--model", "tiny_netwroks:dead"], ["did you mean tiny_networks?"]),
        (["--model", "tiny_networks:broken"], ["RuntimeError: no such weights"]),
        ([*DEAD, "--data", "scored"], ["--data 'scored': write module:callable"]),
        ([*DEAD, "--data", "tiny_networks:scord"], ["--data tiny_networks:scord", "did you mean scored?"]),
        ([*DEAD, "--data", "tiny_networks:broken"], ["--data tiny_networks:broken: calling it", "no such weights"]),
        ([*DEAD, "--data", "tiny_networks:misspelt"], ["it holds 'validat'; did you mean validate?"]),
        ([*DEAD, "--data", "tiny_networks:nothing"], ["a dict without data; give at least one of calibration"]),
        ([*DEAD, "--data", "tiny_networks:number"], ["a int without data; give at least one of calibration"]),
        ([*DEAD, "--data", "tiny_networks:scored"], ["--input and example_inputs of --data are both given"]),
        ([*DEAD, "--steps", "simplfy"], ["--steps: there is no 'simplfy' among simplify", "did you mean simplify"]),
        ([*DEAD, "--steps", "recover"], ["the step 'recover' needs data: pass train=..."]),
        (["--model", "tiny_networks:dead", "--input", "1x4x16x16"], ["does not take the example; give --input"]),
        (["--model", "tiny_networks:number"], ["returned an int"]),
        ([*TAUGHT, "tiny_networks:Failing"], ["metric failed with KeyError: 'scores'"]),
        ([*TAUGHT, "tiny_networks:lossy", "--steps", "recover"], ["loss failed with RuntimeError: no such loss"]),
        (
            [*TAUGHT, "tiny_networks:taught", "--steps", "prune", "--target", "0.001"],
            ["target is 203 MACs, and prune came to ", "MACs score 1,"],
        ),
        (
            [*TAUGHT, "tiny_networks:taught", "--steps", "prune", "--target", "macs=0.9, parameters=0.001"],
            [" MACs and ", " parameters, and prune came to ", "MACs score 1,"],
        ),
    ],
)
def test_what_cannot_run_is_told_in_a_line_and_leaves_no_folder(
    options: list[str], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main([*options, "--out", str(tmp_path / "s")]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("edgedi-compact: ")
    assert [word for word in words if word not in said] == []
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_cannot_be_saved_is_told_before_the_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    options = ("--model", "tiny_networks:foreign", "--input", "2x3", "--out", str(tmp_path / "s"))
    assert main(options) == 2
    said = capsys.readouterr()
    assert "cannot be saved" in said.err
    assert said.out == ""
    assert list(tmp_path.iterdir()) == []


WAITING = """
import sys
import edgedi.bench.networks as networks
from edgedi.cli import compact
from threading import Event
def load_network(name):
    print("ready", flush=True)
    Event().wait()
networks.load_network = load_network
sys.exit(compact.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_says_so_and_leaves_no_folder(number: int, tmp_path: Path):
    command = [sys.executable, "-c", WAITING, "--model", "x:y", "--out", str(tmp_path / "s")]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent.parent)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, env=environment, **pipes) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.splitlines()[-1] == "edgedi-compact: interrupted"
    assert list(tmp_path.iterdir()) == []


def test_it_names_all_that_a_target_may_be_of():
    assert command._TARGETS == TARGETS
