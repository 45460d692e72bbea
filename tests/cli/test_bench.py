"""edgedi-bench as its user meets it: what it prints and writes, its exit codes, every wrong option, Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from edgedi.bench import demo, devices, progress, running, settings
from edgedi.bench.demo import SamePredictions
from edgedi.bench.progress import Teller
from edgedi.cli.bench import main
from edgedi.partition.planners.by_name import planners
from edgedi.runtime.session.session import Session
from edgedi.runtime.worker.local_workers import LocalWorkers
from tests.bench.html.reading import read

HERE = Path(__file__).parent
CHAIN = ("--model", "tiny_networks:chain", "--input", "1x3x16x16")
FEW = ("--rounds", "3", "--repeat", "2")


@pytest.fixture(autouse=True)
def networks_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """``tiny_networks`` is found as a user's own module is: in the current folder."""
    monkeypatch.chdir(HERE)


@pytest.fixture(scope="module")
def workers() -> Iterator[LocalWorkers]:
    started = LocalWorkers(2, threads=1)
    assert len(started.addresses) == 2
    yield started
    started.stop()


def run(*options: str, path: Path) -> dict[str, Any]:
    """A run that must end well; what it wrote."""
    assert main([*options, *FEW, "--json", str(path)]) == 0
    return json.loads(path.read_text())


# --- what a run gives -------------------------------------------------------------------------------------------------


def test_local_workers_planners_and_an_engine_in_one_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    found = run(*CHAIN, "--local", "2", "--planners", "oodp,equal", "--against", "eager", path=tmp_path / "r.json")
    printed = capsys.readouterr()
    assert [split["name"] for split in found["planners"]] == ["single", "oodp", "equal"]
    assert [single["name"] for single in found["engines"]] == ["eager"]
    assert found["workers"] == ["local-0", "local-1"]
    assert found["not_compared"] == {}
    assert found["same"] is True
    for part in (*found["planners"], *found["engines"]):
        assert len(part["seconds"]) == 3
        assert 0 < part["min_s"] <= part["median_s"]
        assert part["difference"] <= 2e-5
        assert part["name"] in printed.out
    single, _, equal = found["planners"]
    assert single["times_as_fast_as_one_worker"] == {"median": 1.0, "low": 1.0, "high": 1.0}
    assert [len(split["computed_by"]) for split in found["planners"]] == [2, 2, 2]
    assert "Computed by torch" in printed.out
    assert single["between_workers_bytes"] == 0
    assert equal["between_workers_bytes"] > 0
    assert single["home_bytes"] == 4 * (3 * 16 * 16 + 5)
    assert equal["predicted_s"] >= equal["predicted_bound_s"] > 0
    assert equal["bound_is_measured"] is True
    assert 0 < equal["bound_s"] < equal["median_s"]
    assert equal["share_of_bound"]["median"] == pytest.approx(equal["bound_s"] / equal["median_s"])
    assert equal["efficiency"] == pytest.approx(equal["times_as_fast_as_best_engine"]["median"] / 2)
    halos = {link: count for link, count in equal["bytes_per_link"].items() if "home" not in link}
    assert sum(halos.values()) == equal["between_workers_bytes"]
    assert [0 < memory["baseline_bytes"] <= memory["peak_bytes"] for memory in found["memory"]] == [True] * 2
    assert found["machine"]["torch"] == torch.__version__
    assert "measuring 4 contenders in turn" in printed.err


def test_running_workers_are_used_and_left_running(workers: LocalWorkers, tmp_path: Path):
    given = ",".join(workers.addresses)
    options = (*CHAIN, "--workers", given, "--planners", "proportional", "--against", "none")
    for _ in range(2):
        found = run(*options, path=tmp_path / "r.json")
        assert [split["name"] for split in found["planners"]] == ["single", "proportional"]
        assert found["engines"] == []
        assert found["pinned"] is False


def test_several_inputs_and_a_nested_answer(workers: LocalWorkers, tmp_path: Path):
    found = run(
        "--model", "tiny_networks:nested", "--input", "1x3x12x10,1x1x12x10",
        "--workers", workers.addresses[0], "--against", "eager", path=tmp_path / "r.json",
    )  # fmt: skip
    assert [part["difference"] <= 2e-5 for part in (*found["planners"], *found["engines"])] == [True] * 3


def test_engines_that_are_not_installed_are_named(
    workers: LocalWorkers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(running, "what_is_missing", lambda name: None if name == "eager" else f"no {name} here")
    options = (*CHAIN, "--workers", workers.addresses[0])
    found = run(*options, path=tmp_path / "r.json")
    assert found["not_compared"] == {name: f"no {name} here" for name in settings.ENGINE_NAMES if name != "eager"}
    assert "Not compared: openvino. no openvino here" in capsys.readouterr().out
    assert main([*options, "--against", "eager,openvino"]) == 2
    assert "--against openvino: no openvino here" in capsys.readouterr().err


def test_the_page_of_a_run_has_its_contenders_its_plan_and_one_request(tmp_path: Path):
    page = tmp_path / "r.html"
    options = (*CHAIN, "--local", "2", "--planners", "equal", "--counts", "1", "--against", "eager")
    found = run(*options, "--html", str(page), path=tmp_path / "r.json")
    assert [split["name"] for split in found["planners"]] == ["single", "equal", "equal on 1"]
    assert [split["num_workers"] for split in found["planners"]] == [1, 2, 1]
    shown = read(page.read_text(encoding="utf-8"))
    assert shown.all("h1")[0].text == "tiny_networks:chain"
    assert [row.all("td")[0].text for row in shown.all("table")[0].all("tr")[1:]][:3] == [
        "single",
        "equal",
        "equal on 1",
    ]
    kinds = {bar.attributes["data-kind"] for bar in shown.all("rect") if "data-kind" in bar.attributes}
    assert {"compute", "send"} <= kinds
    numbers = json.loads(shown.all("details")[-1].all("pre")[0].text)
    assert numbers == found


class Killer(Teller):
    """Ends a worker, of those that the command has started, before round 2."""

    def rounds(self, count: int, what: str) -> Iterator[int]:
        for number in super().rounds(count, what):
            if number == 2:
                os.kill(started[-1].process_ids[0], signal.SIGKILL)
            yield number


started: list[LocalWorkers] = []


def test_a_worker_that_leaves_in_the_middle_leaves_a_partial_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def start(count: int, threads: int) -> LocalWorkers:
        started.append(LocalWorkers(count, threads=threads))
        return started[-1]

    monkeypatch.setattr(devices, "start_workers", start)
    monkeypatch.setattr(progress, "Teller", Killer)
    path, page = tmp_path / "r.json", tmp_path / "r.html"
    options = (*CHAIN, "--local", "2", "--planners", "equal", "--against", "none", "--rounds", "6")
    assert main([*options, "--json", str(path), "--html", str(page)]) == 2
    printed, found = capsys.readouterr(), json.loads(path.read_text())
    assert found["num_rounds"] == 2
    assert found["ended_early"].startswith("after 2 complete rounds: ")
    assert [len(split["seconds"]) for split in found["planners"]] == [2, 2]
    assert [split["name"] in printed.out for split in found["planners"]] == [True, True]
    assert "THE RUN ENDED EARLY after 2 complete rounds" in " ".join(printed.out.split())
    assert "edgedi-bench: ended early after 2 complete rounds" in printed.err
    assert "THE RUN ENDED EARLY" in page.read_text(encoding="utf-8")


def test_a_worker_that_leaves_before_the_rounds_is_named_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """And not after the seconds in which the next session would wait for its answer."""
    ended, opened, made = LocalWorkers(2, threads=1), list[str](), running.distribute

    def noted(*arguments: Any, **more: Any) -> Session:
        session = made(*arguments, **more)
        opened.append(more["planner"])
        os.kill(ended.process_ids[1], signal.SIGKILL)
        os.waitpid(ended.process_ids[1], 0)
        assert len(session.statistics().workers) == 1
        return session

    monkeypatch.setattr(running, "distribute", noted)
    options = ("--workers", ",".join(ended.addresses), "--planners", "equal", "--against", "none")
    try:
        assert main([*CHAIN, *options]) == 2
    finally:
        ended.stop()
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == "edgedi-bench: single: of its workers 0:local-0, 1:local-1 these have left: 1:local-1"
    assert opened == ["single"]


# --- what a user gets wrong -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], ["--demo", "--model", "required"]),
        (["--modle", "x:y"], ["usage: edgedi-bench", "--model NAME"]),
        (["--demo", "--model", "x:y"], ["not allowed with"]),
        (["--demo", "--planners", "oodp"], ["--demo does not take --planners", "--rounds and --json"]),
        ([*CHAIN, "--input", "1x3xhx9"], ["'1x3xhx9'", "1x3x224x224"]),
        ([*CHAIN, "--input", "1x3x0x9"], ["'1x3x0x9'"]),
        ([*CHAIN, "--local", "0"], ["'0' is not a number from 1 up"]),
        ([*CHAIN, "--local", "two"], ["'two' is not a number from 1 up"]),
        ([*CHAIN, "--local", "2", "--workers", "a:1"], ["not allowed with"]),
        ([*CHAIN, "--workers", "here"], ["'here'", "host:port"]),
        ([*CHAIN, "--planners", "oodp,evn"], ["no planner 'evn'; accepted are", *planners()]),
        ([*CHAIN, "--planners", "oopd"], ["no planner 'oopd'", "did you mean oodp"]),
        ([*CHAIN, "--against", "openvinno"], ["no engine 'openvinno'", "did you mean openvino?"]),
        ([*CHAIN, "--against", "eagre"], ["'eagre'", *settings.ENGINE_NAMES]),
        ([*CHAIN, "--rounds", "-1"], ["'-1' is not a number from 1 up"]),
        ([*CHAIN, "--repeat", "1.5"], ["'1.5' is not a number from 1 up"]),
        ([*CHAIN, "--threads", ""], ["'' is not a number from 1 up"]),
        ([*CHAIN, "--counts", "1,two"], ["'two' is not a number from 1 up"]),
        (["--demo", "--html", "x.html"], ["--demo does not take --html"]),
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
        (
            ["--model", "resnet50"],
            ["--model 'resnet50': write torchvision:NAME or", "did you mean torchvision:resnet50?"],
        ),
        (["--model", "tiny_networks:"], ["--model 'tiny_networks:': write torchvision:NAME or module:callable"]),
        (["--model", "no_such_module:net"], ["no_such_module does not import"]),
        (["--model", "torchvision:resnt50"], ["has no 'resnt50'", "did you mean resnet"]),
        (["--model", "torchvison:resnet50"], ["torchvison does not import", "did you mean torchvision"]),
        (["--model", "tiny_networks:chian"], ["has no 'chian'", "did you mean chain?"]),
        (["--model", "tiny_netwroks:chain"], ["did you mean tiny_networks?"]),
        ([*CHAIN, "--counts", "1,3"], ["--counts 1,3: there are 2 workers, so give numbers from 1 to 2"]),
        ([*CHAIN, "--html", "no/such/folder/r.html"], ["no/such/folder/r.html"]),
        (["--model", "tiny_networks:not_callable"], ["'not_callable' of tiny_networks is an int, not callable"]),
        (["--model", "tiny_networks:broken"], ["RuntimeError: no such weights"]),
        (["--model", "tiny_networks:number"], ["it returned an int, not a torch.nn.Module"]),
        (["--model", "tiny_networks:chain", "--input", "1x4x9x9"], ["--input 1x4x9x9", "does not take it"]),
        (["--model", "tiny_networks:picky", "--input", "1x3x9x9"], ["AssertionError: Wrong image height! Expected 8"]),
        ([*CHAIN, "--json", "no/such/folder/r.json"], ["no/such/folder/r.json"]),
        ([*CHAIN, "--workers", "127.0.0.1:port", "--against", "none"], ["127.0.0.1:port"]),
        ([*CHAIN, "--workers", "127.0.0.1:1,127.0.0.1:1", "--against", "none"], ["twice"]),
        ([*CHAIN, "--workers", "127.0.0.1:1", "--key", "no.key", "--against", "none"], ["no key at no.key"]),
    ],
)
def test_what_prevents_a_run_is_said_and_exits_with_2(
    options: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
):
    assert main(options) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("edgedi-bench: ")
    assert [word for word in words if word not in said] == []


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("def net(:\n", "module own_networks does not import: SyntaxError: invalid syntax"),
        ("net = nn.Conv2d\n", "module own_networks does not import: NameError: name 'nn' is not defined"),
    ],
)
def test_a_module_that_is_broken_says_how(
    code: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "own_networks.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["--model", "own_networks:net"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"edgedi-bench: --model own_networks:net: {words}")
    assert "did you mean" not in said


def test_a_worker_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]):
    with socket.socket() as taken:  # bound and not listening: nobody answers there
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert main([*CHAIN, "--workers", address, "--against", "none"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"no answer from worker {address}" in said


# --- the demo ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "NETWORKS", {"Tiny": "tiny_networks:chain"})


@pytest.mark.usefixtures("tiny_demo")
def test_the_demo_shows_that_every_prediction_is_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "demo.json"
    assert main(["--demo", "--rounds", "2", "--json", str(path)]) == 0
    printed, found = capsys.readouterr(), json.loads(path.read_text())
    digits = found["digits"]
    assert digits["num_equal"] == digits["num_images"] == 360
    assert digits["num_right"] > 340
    assert digits["num_split"] > 0
    assert 0 <= digits["largest_difference"] <= 2e-5
    assert "360 of 360 test predictions" in printed.out
    assert "ALL THE SAME" in printed.out
    assert [row["network"] for row in found["rows"]] == ["Tiny"]
    assert "epoch" in printed.err


@pytest.mark.usefixtures("tiny_demo")
def test_a_demo_with_another_prediction_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    other = SamePredictions(
        num_images=360, num_equal=359, num_right=350, num_split=1, num_segments=1, largest_difference=1.0
    )
    monkeypatch.setattr(demo, "compare_digits", lambda addresses, teller: other)
    assert main(["--demo", "--rounds", "1"]) == 1
    printed = capsys.readouterr()
    assert "NOT THE SAME" in printed.out
    assert "differs from the model's own" in printed.err


@pytest.mark.usefixtures("tiny_demo")
@pytest.mark.parametrize("module", ["sklearn", "sklearn.datasets"])
def test_a_demo_without_its_libraries_says_what_to_install(
    module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setitem(sys.modules, module, None)
    assert main(["--demo"]) == 2
    assert "pip install 'edgedi[demo]'" in capsys.readouterr().err


# --- Ctrl-C -----------------------------------------------------------------------------------------------------------


def send_to_all(process: subprocess.Popen[str], number: int) -> None:
    os.killpg(process.pid, number)


def send_to_one(process: subprocess.Popen[str], number: int) -> None:
    process.send_signal(number)


@pytest.mark.parametrize(("send", "number"), [(send_to_all, signal.SIGINT), (send_to_one, signal.SIGTERM)])
def test_an_interrupted_run_leaves_nothing_behind(send: Any, number: int, tmp_path: Path):
    """A terminal sends Ctrl-C to the whole group, a supervisor to one process; in both cases nobody is left."""
    command = [sys.executable, "-m", "edgedi.cli.bench", *CHAIN, "--against", "eager", "--rounds", "1000000"]
    temporary, caches = tmp_path / "temporary", tmp_path / "caches"  # torch keeps a cache of its own: not a left-over
    temporary.mkdir()
    environment = {**os.environ, "TMPDIR": str(temporary), "TORCHINDUCTOR_CACHE_DIR": str(caches)}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, env=environment
    )
    assert process.stderr is not None
    before = [line for line in iter(process.stderr.readline, "") if not _stop_at(line, process, send, number)]
    assert process.wait(60) == 130, "".join(before)
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    assert list(temporary.iterdir()) == []
    assert "edgedi-bench: interrupted\n" in before
    assert process.stdout is not None
    assert process.stdout.read() == ""
    process.stdout.close()
    process.stderr.close()


def _stop_at(line: str, process: subprocess.Popen[str], send: Any, number: int) -> bool:
    if "1000000 rounds" not in line:
        return False
    send(process, number)
    return True


def test_this_process_can_be_the_first_worker(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--model", "tests.runtime.networks:small", "--input", "1x3x48x48", "--local", "2", "--share"]
    assert main([*arguments, "--planners", "equal", "--against", "none", "--rounds", "2", "--counts", "1"]) == 0
    printed = capsys.readouterr().out
    assert "The first worker is this process" in printed
    assert "Peak memory of here" in printed
    assert "equal on 1" in printed
