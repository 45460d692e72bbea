"""edgedi-bench --objective throughput: what it prints and writes, and what it refuses."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from edgedi import distribute
from edgedi.bench import running
from edgedi.bench.cores import deal
from edgedi.bench.streams import EmulatedGroup, EngineContender, EngineGroup, StreamContender, times_each
from edgedi.cli.bench import main
from edgedi.errors import WorkerLost
from edgedi.partition.plan.placement import Placement
from edgedi.runtime.session import session as session_module
from edgedi.runtime.session.session import Session
from edgedi.runtime.session.verify import Comparison
from edgedi.runtime.worker.local_workers import LocalWorkers
from tests.cli import tiny_networks

HERE = Path(__file__).parent
CHAIN = ("--model", "tiny_networks:chain", "--input", "1x3x16x16", "--objective", "throughput", "--rounds", "2")


@pytest.fixture(autouse=True)
def networks_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """``tiny_networks`` is found as a user's own module is: in the current folder."""
    monkeypatch.chdir(HERE)


@pytest.fixture(scope="module")
def workers() -> Iterator[LocalWorkers]:
    started = LocalWorkers(2, threads=1)
    yield started
    started.stop()


class Engine:
    """Says it took so long for a request, and notes that it was asked."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self.asked = seconds, 0

    def seconds(self, index: int) -> float:
        self.asked += 1
        return self._seconds


def test_rates_of_processes_at_once_add_up() -> None:
    engines = [Engine(0.5), Engine(0.25)]
    group = EngineGroup("two", engines, 3)  # type: ignore[arg-type]
    assert group.seconds(0) == pytest.approx(1 / 6)
    assert [engine.asked for engine in engines] == [3, 3]
    group.close()


def test_one_process_stands_for_emulated_devices_of_several_speeds() -> None:
    engine = Engine(0.5)
    group = EmulatedGroup("three", engine, 2, (1.0, 0.5, 0.5))  # type: ignore[arg-type]
    assert group.seconds(0) == pytest.approx(0.25)
    assert (group.num_devices, engine.asked) == (3, 2)
    group.close()


def test_sessions_and_an_engine_in_one_run(
    workers: LocalWorkers, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "s.json"
    given = ("--workers", ",".join(workers.addresses), "--planners", "equal", "--against", "eager")
    assert main([*CHAIN, *given, "--repeat", "3", "--json", str(path)]) == 0
    printed, found = capsys.readouterr(), json.loads(path.read_text())
    names = ["one worker", "equal, in flight", "throughput", "eager", "eager, 2 at once"]
    assert [row["name"] for row in found["rows"]] == names
    assert [name in printed.out for name in names] == [True] * 5
    assert [len(row["seconds"]) for row in found["rows"]] == [2] * 5
    assert [row["num_devices"] for row in found["rows"]][0::3] == [1, 1]
    assert all(row["difference"] <= 2e-5 for row in found["rows"])
    assert all(row["requests_per_s"] == pytest.approx(1 / row["median_s"]) for row in found["rows"])
    assert found["rows"][3]["times_as_fast_as_best_engine"] == {"median": 1.0, "low": 1.0, "high": 1.0}
    assert (found["best_engine"], found["in_flight"], found["settings"]["repeat"]) == ("eager", 6, 3)
    chosen: Any = Placement.parse(found["rows"][2]["placement"])
    assert chosen.rate_per_s == pytest.approx(found["rows"][2]["predicted_requests_per_s"], rel=1e-4)
    assert "throughput chose: worker" in printed.out
    assert "on ONE device" in printed.out
    assert [len(row["computed_by"]) for row in found["rows"]] == [2, 2, 2, 0, 0]
    assert "Computed by torch" in printed.out


def test_without_engines_there_are_only_sessions(workers: LocalWorkers, tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    given = ("--workers", workers.addresses[0], "--against", "none", "--json", str(path))
    assert main([*CHAIN, *given]) == 0
    found = json.loads(path.read_text())
    assert [row["name"] for row in found["rows"]] == ["one worker", "oodp, in flight", "throughput"]
    assert [row["times_as_fast_as_best_engine"] for row in found["rows"]] == [None] * 3
    assert found["settings"]["repeat"] == 20


def test_this_process_takes_part_with_a_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Engines get the cores that the workers have, although this process is on the first of them by then."""
    cores = list[list[int]]()

    class Noting(EngineContender):
        def __init__(self, engine: str, model: str, tensors: Path, given: list[int], *others: Any, **more: Any) -> None:
            cores.append(given)
            super().__init__(engine, model, tensors, given, *others, **more)

    monkeypatch.setattr(running, "EngineContender", Noting)
    path, dealt = tmp_path / "s.json", deal(2, 1)
    given = ("--local", "2", "--share", "--against", "eager", "--repeat", "3", "--json", str(path))
    assert main([*CHAIN, *given]) == 0
    found = json.loads(path.read_text())
    assert found["workers"][0] == "here"
    assert (len(found["workers"]), found["in_flight"], found["same"]) == (2, 6, True)
    assert cores == dealt
    assert "The first worker is this process" in capsys.readouterr().out


def test_this_process_alone_and_beside_running_workers(workers: LocalWorkers, tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    given = ("--share", "--against", "none", "--repeat", "3", "--json", str(path))
    assert main([*CHAIN, "--local", "1", *given]) == 0
    assert json.loads(path.read_text())["workers"] == ["here"]
    assert main([*CHAIN, "--workers", workers.addresses[0], *given]) == 0
    found = json.loads(path.read_text())
    assert (found["workers"][0], len(found["workers"]), found["same"]) == ("here", 2, True)


def test_a_run_that_loses_a_worker_keeps_its_complete_rounds(
    workers: LocalWorkers, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    right, calls = StreamContender.seconds, []

    def fails_later(contender: StreamContender, index: int) -> float:
        calls.append(contender.name)
        if len(calls) > 7:  # a round to warm up, one that counts, and one request of the next
            raise WorkerLost("worker 127.0.0.1:1 closed the connection")
        return right(contender, index)

    monkeypatch.setattr(StreamContender, "seconds", fails_later)
    path = tmp_path / "s.json"
    assert main([*CHAIN, "--workers", workers.addresses[0], "--against", "none", "--json", str(path)]) == 2
    printed, found = capsys.readouterr(), json.loads(path.read_text())
    assert [len(row["seconds"]) for row in found["rows"]] == [1, 1, 1]
    assert found["ended_early"] == "after 1 complete rounds: worker 127.0.0.1:1 closed the connection"
    assert "ended early after 1 complete rounds" in printed.err
    assert "throughput" in printed.out
    assert "1 workers; requests a second over 1 rounds" in printed.out
    assert "THE RUN ENDED EARLY after 1 complete rounds: worker 127.0.0.1:1" in " ".join(printed.out.split())


def test_a_worker_that_leaves_in_an_engines_turn_ends_the_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No request fails: those that follow go to the worker that is left."""
    started, sessions, turns = LocalWorkers(2, threads=1), list[Session](), list[int]()
    right, made = EngineGroup.seconds, running.distribute

    def noted(*arguments: Any, **more: Any) -> Session:
        sessions.append(made(*arguments, **more))
        return sessions[-1]

    def ends_a_worker(group: EngineGroup, index: int) -> float:
        turns.append(index)
        if len(turns) == 3:  # one to warm up, one that counts
            os.kill(started.process_ids[1], signal.SIGKILL)
            os.waitpid(started.process_ids[1], 0)
            assert [len(session.statistics().workers) for session in sessions] == [1, 1, 1]
        return right(group, index)

    monkeypatch.setattr(running, "distribute", noted)
    monkeypatch.setattr(EngineGroup, "seconds", ends_a_worker)
    path = tmp_path / "s.json"
    given = ("--workers", ",".join(started.addresses), "--against", "eager", "--repeat", "3", "--json", str(path))
    try:
        assert main([*CHAIN, "--rounds", "6", "--planners", "equal", *given]) == 2
    finally:
        started.stop()
    printed, found = capsys.readouterr(), json.loads(path.read_text())
    assert found["ended_early"].startswith("after 1 complete rounds: ")
    assert found["ended_early"].endswith(": of its workers 0:local-0, 1:local-1 these have left: 1:local-1")
    assert {len(row["seconds"]) for row in found["rows"]} == {1}
    assert "THE RUN ENDED EARLY after 1 complete rounds" in " ".join(printed.out.split())


def test_each_replica_answers_as_often_in_the_time() -> None:
    assert [times_each(20, count) for count in (1, 2, 3, 8, 20, 24)] == [20, 20, 21, 24, 20, 24]


def test_a_stream_is_timed_while_it_flows() -> None:
    """The first answers and the last ones do not count: while they come not everybody is busy."""
    now_s, session = [0.0], Mock()
    session.plan.num_workers, session.workers = 1, ("one",)
    session.statistics.return_value = Mock(local_answers=0, workers={"0:one": {"late_s": 0.0}})

    def stream(inputs: list[Any]) -> Iterator[torch.Tensor]:
        for number, _ in enumerate(inputs):
            now_s[0] += 2.0 if 3 <= number < 8 else 100.0
            yield torch.tensor(number)

    session.stream.side_effect = stream
    contender = StreamContender("throughput", session, [(None,)], 5, 3, lambda: now_s[0])
    assert contender.seconds(0) == 2.0
    assert contender.answer(0) == [torch.tensor(10)]


def test_answers_that_this_process_gave_are_not_the_workers(
    workers: LocalWorkers, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong, x = Comparison(equal=False, difference=1.0, tolerance=2e-5), torch.randn(1, 3, 16, 16)
    monkeypatch.setattr(session_module, "compare", lambda answer, own: wrong)
    with distribute(tiny_networks.chain().eval(), x, workers.addresses[:1], allow_local=False) as session:
        contender = StreamContender("throughput", session, [(x,)], 3, 1)
        with pytest.raises(WorkerLost, match="throughput: 5 of 5 requests were answered by this process instead of"):
            contender.seconds(0)


def test_an_answer_that_differs_is_told(
    workers: LocalWorkers, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = running.own_answer
    monkeypatch.setattr(running, "own_answer", lambda *given: [tensor + 1 for tensor in right(*given)])
    assert main([*CHAIN, "--workers", workers.addresses[0], "--against", "none"]) == 1
    assert "differs from the model's own" in capsys.readouterr().err


def test_an_unknown_objective_is_refused_with_the_known(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--model", "tiny_networks:chain", "--objective", "speed"])
    assert ended.value.code == 2
    assert "'latency', 'throughput'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--demo", "--objective", "throughput"])
    assert "--demo does not take --objective" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*CHAIN, "--html", "page.html"])
    assert "--objective throughput does not take --html" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--input", "1x4x16x16", "--against", "none"], "tiny_networks:chain does not take it"),
        (["--workers", "127.0.0.1:1", "--against", "none"], "127.0.0.1:1"),
        (["--model", "tiny_networks:chian", "--against", "none"], "chian"),
    ],
)
def test_what_prevents_a_run_is_named(options: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*CHAIN, "--local", "1", *options] if "--workers" not in options else [*CHAIN, *options]) == 2
    assert words in capsys.readouterr().err
