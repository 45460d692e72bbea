"""Small testbeds for real: right answers, the predicted bytes over shaped links, nothing left afterwards."""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

from edgedi import ClusterProfile, capture, distribute, lower
from edgedi.bench.contenders import SessionContender
from edgedi.bench.engine_contender import EngineContender
from edgedi.bench.engine_process import stopwatch_of
from edgedi.bench.testbed import start
from edgedi.bench.testbed.namespaces import LOCKS, NAMESPACES, Network, NoNamespaces
from edgedi.bench.testbed.price import measured_price
from edgedi.bench.testbed.spec import Link
from edgedi.bench.testbed.specs import parse_spec
from edgedi.bench.testbed.start import Testbed
from edgedi.cli import worker
from edgedi.cli.bench import main
from edgedi.partition.cost.cost import CostModel
from edgedi.partition.plan.program import Send
from edgedi.runtime.emulation.calm import CALM, Calm
from edgedi.runtime.emulation.here import Emulation, emulation_here
from edgedi.runtime.session.session import Session
from edgedi.runtime.worker.local_workers import Launch, LocalWorkers

CLI = Path(__file__).parent.parent / "cli"
RATE_BITS_PER_S = 2_000_000
SPEC = f"""
[link]
rate_bits_per_s = {RATE_BITS_PER_S}
latency_s = 0.002
[[devices]]
name = "first"
slowdown = 2
memory_bytes = 200_000_000
[[devices]]
name = "second"
slowdown = 3
memory_bytes = 100_000_000
"""
SLOWLY = "dilation = 4\n" + SPEC.replace(str(RATE_BITS_PER_S), "40_000_000")


def why_no_namespaces() -> str:
    try:
        Network([Link(rate_bits_per_s=1e9)]).close()
    except NoNamespaces as error:
        return str(error)
    return ""


WHY_NOT = why_no_namespaces()
needs_namespaces = pytest.mark.skipif(bool(WHY_NOT), reason=f"no network namespaces here: {WHY_NOT}")
WAYS = [pytest.param(True, id="namespaces", marks=needs_namespaces), pytest.param(False, id="relay")]


def left(process_id: int) -> set[str]:
    """What there is of networks that a process has made."""
    tokens = [path.name for path in LOCKS.glob("*") if path.read_text() == f"{process_id}\n"]
    return {path.name for token in tokens for path in (*NAMESPACES.glob(f"edgedi-{token}-*"), LOCKS / token)}


@pytest.fixture
def network() -> torch.nn.Module:
    torch.manual_seed(5)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3, padding=1)
    ).eval()


@pytest.fixture(params=WAYS)
def testbed(request: pytest.FixtureRequest) -> Iterator[Testbed]:
    made = Testbed(parse_spec(SPEC, name="two"), lambda text: None, namespaces=request.param)
    assert len(left(os.getpid())) == (4 if request.param else 0)
    yield made
    made.close()
    made.close()
    assert left(os.getpid()) == set()
    assert emulation_here() == Emulation()


def sent_bytes(session: Session) -> dict[str, int]:
    return {name: int(values["sent_bytes"]) for name, values in session.statistics().workers.items()}


def test_the_answer_is_the_networks_and_the_predicted_bytes_take_the_time_that_the_link_needs(
    testbed: Testbed, network: torch.nn.Module
):
    x = torch.rand(1, 3, 64, 64)
    profile = ClusterProfile.uniform(2)
    with distribute(
        network, x, testbed.addresses, planner="equal", profile=profile, key=testbed.key, local=True
    ) as session:
        assert session.workers == ("here", "second")
        welcomes = session._deployer.welcomes
        assert [welcome.memory_limit_bytes for welcome in welcomes] == [200_000_000, 100_000_000]
        session(x)
        before = sent_bytes(session)
        started_s = time.monotonic()
        answer = session(x)
        taken_s = time.monotonic() - started_s
        after = sent_bytes(session)
        graph = capture(network, x)
        programs, model = lower(session.plan, graph).programs, CostModel(graph, profile)
    assert torch.allclose(answer, network(x), atol=1e-6)
    predicted = {
        participant: {
            target: sum(
                model.num_bytes(i.piece)
                for i in program.instructions
                if isinstance(i, Send) and i.target == target
            )
            for target in (-1, 0, 1)
        }
        for participant, program in programs.items()
    }  # fmt: skip
    assert [new - old for new, old in zip(after.values(), before.values(), strict=True)] == [
        sum(predicted[0].values()), sum(predicted[1].values())
    ]  # fmt: skip
    over_the_link = predicted[-1][1] + predicted[0][1]
    assert predicted[0][1] > 0  # a halo from this process's share
    assert over_the_link > 20_000
    assert taken_s > 0.9 * 8 * over_the_link / RATE_BITS_PER_S


@pytest.mark.parametrize("namespaces", WAYS)
def test_weights_that_take_longer_than_signs_of_life_may_fail_to_come_arrive(namespaces: bool):
    """Five megabytes in one tensor at one megabyte a second; both ends give up after three seconds of silence."""
    spec = parse_spec(SPEC, name="two").with_rate(8e6)
    testbed = Testbed(spec, lambda text: None, namespaces=namespaces)
    network = torch.nn.Conv2d(1000, 1250, 1).eval()
    x = torch.rand(1, 1000, 4, 4)
    try:
        with distribute(
            network, x, testbed.addresses, planner="equal", profile=ClusterProfile.uniform(2), key=testbed.key,
            local=True, allow_local=False,
        ) as session:  # fmt: skip
            assert torch.allclose(session(x), network(x), atol=1e-5)
            assert [segment.axis for segment in session.plan.segments] == ["rows"]
    finally:
        testbed.close()


def test_a_testbed_says_that_it_is_one(testbed: Testbed):
    assert str(testbed).startswith("Emulated devices, not real ones: two: 1 x 2 times as slow at 2 Mbit/s, 2 ms, 1 x 3")
    assert testbed.how in ("links shaped by the kernel", "links shaped by a relay")
    assert len(testbed.addresses) == 1
    assert emulation_here().speed.slowdown == 2
    assert torch.get_num_threads() == 1


def test_devices_get_the_latency_of_their_links(monkeypatch: pytest.MonkeyPatch):
    launch, launches = start.LocalWorkers.launch, list[Launch]()

    def noted(given: Sequence[Launch]) -> LocalWorkers:
        launches.extend(given)
        return launch(given)

    monkeypatch.setattr(start.LocalWorkers, "launch", noted)
    text = SLOWLY + "[devices.link]\nrate_bits_per_s = 1e9\nlatency_s = 0.003\n"
    testbed = Testbed(parse_spec(text, name="two"), lambda text: None, namespaces=False)
    own, calm_loop_s = emulation_here().speed, CALM.best_s
    testbed.close()
    assert (own.slowdown, own.latency_s, own.dilation) == (2, 0.002, 4)
    (other,) = [worker.parser().parse_args(each.options) for each in launches]
    assert (other.slowdown, other.latency, other.dilation, other.memory_limit) == (3, 0.003, 4, 100_000_000)
    assert (other.message_price, other.message_passing) == (str(own.price), str(own.passing))
    assert other.calm_loop == calm_loop_s
    assert 0 < calm_loop_s < math.inf


@pytest.mark.parametrize("namespaces", [pytest.param(True, marks=needs_namespaces), False])
def test_in_a_testbed_whose_time_runs_slowly_seconds_are_the_devices(namespaces: bool):
    """Of one second of this machine the devices see a quarter: requests, links, profiles and traces alike."""
    spec = parse_spec(SLOWLY, name="two")
    network, x = torch.nn.Conv2d(3, 8, 3).eval(), torch.rand(1, 3, 32, 32)
    testbed = Testbed(spec, lambda text: None, namespaces=namespaces)
    try:
        with distribute(
            network, x, testbed.addresses, planner="equal", key=testbed.key, local=True, allow_local=False
        ) as session:
            contender = SessionContender("slow", session, [(x,)], testbed.clock)
            started_s = time.monotonic()
            taken_s = contender.seconds(0)
            passed_s = time.monotonic() - started_s
            spans = session.spans(x)
            link = next(iter(session.profile.links.values()))
    finally:
        testbed.close()
    assert 2 * 0.002 < taken_s <= passed_s / 4  # there and back
    assert link.latency_s + 2 * link.message_cpu_s > 0.001  # who is not at rest hears of a message earlier
    assert link.bytes_per_s < 1.5 * 4e7 / 8
    assert {span.participant for span in spans} == {-1, 0, 1}


def test_cables_are_slower_where_time_runs_slowly(monkeypatch: pytest.MonkeyPatch):
    made: list[list[float]] = []

    class Noted(start.RelayProcess):
        def __init__(self, bytes_per_s: Sequence[float]) -> None:
            made.append(list(bytes_per_s))
            super().__init__(bytes_per_s)

    monkeypatch.setattr(start, "RelayProcess", Noted)
    Testbed(parse_spec(SLOWLY, name="two"), lambda text: None, namespaces=False).close()
    assert made == [[4e7 / 8 / 4] * 2]


@needs_namespaces
def test_links_of_namespaces_have_keys_and_those_of_the_relay_need_none():
    for namespaces in (True, False):
        testbed = Testbed(parse_spec(SPEC, name="two"), lambda text: None, namespaces=namespaces)
        try:
            assert (testbed.key is not None) == namespaces
            assert all(("#" in address) == namespaces for address in testbed.addresses)
        finally:
            testbed.close()


def test_without_namespaces_it_says_what_it_does_instead(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    said: list[str] = []
    testbed = Testbed(parse_spec(SPEC, name="two"), said.append)
    testbed.close()
    assert said == ["no network namespaces (not root): a relay in a process of its own shapes the links instead"]
    assert testbed.how == "links shaped by a relay"


def test_a_testbed_that_cannot_be_put_up_leaves_nothing(monkeypatch: pytest.MonkeyPatch):
    threads = torch.get_num_threads()

    def fail(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(start.LocalWorkers, "launch", fail)
    for namespaces in (False, not WHY_NOT):
        with pytest.raises(KeyboardInterrupt):
            Testbed(parse_spec(SPEC, name="two"), lambda text: None, namespaces=namespaces)
    assert left(os.getpid()) == set()
    assert emulation_here() == Emulation()
    assert torch.get_num_threads() == threads


# --- edgedi-bench -----------------------------------------------------------------------------------------------------


def test_a_comparison_says_with_every_figure_that_it_is_emulated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(CLI)
    (tmp_path / "two.toml").write_text(SPEC)
    options = (
        "--model", "tiny_networks:chain", "--input", "1x3x16x16", "--testbed", f"{tmp_path / 'two.toml'}@1G",
        "--planners", "equal", "--against", "eager", "--rounds", "2", "--json", str(tmp_path / "r.json"),
    )  # fmt: skip
    rehearsed: list[str] = []
    monkeypatch.setattr(EngineContender, "rehearse_again", lambda self: rehearsed.append(self.name))
    assert main(options) == 0
    captured, found = capsys.readouterr(), json.loads((tmp_path / "r.json").read_text())
    printed = captured.out
    measured = [line.split("s  ", 1)[1] for line in captured.err.splitlines() if "measuring the link" in line]
    assert [line.split(":")[0] for line in measured] == ["single"] * 3, "the first session measures links for all"
    assert rehearsed == ["eager"], "at another moment, as programs are when their bound is measured"
    assert printed.count("Emulated devices, not real ones") == 3
    assert found["emulation"].startswith("Emulated devices")
    assert found["settings"]["testbed"]["devices"][1]["slowdown"] == 3
    assert found["workers"] == ["here", "second"]
    assert found["same"] is True
    assert [split["name"] for split in found["planners"]] == ["single", "equal"]


def test_a_stream_on_emulated_devices_counts_each_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(CLI)
    (tmp_path / "two.toml").write_text(SPEC)
    options = (
        "--model", "tiny_networks:chain", "--input", "1x3x16x16", "--testbed", f"{tmp_path / 'two.toml'}@1G",
        "--objective", "throughput", "--planners", "equal", "--against", "eager", "--rounds", "2", "--repeat", "3",
        "--json", str(tmp_path / "r.json"),
    )  # fmt: skip
    rehearsed: list[str] = []
    monkeypatch.setattr(EngineContender, "rehearse_again", lambda self: rehearsed.append(self.name))
    assert main(options) == 0
    captured, found = capsys.readouterr(), json.loads((tmp_path / "r.json").read_text())
    printed = captured.out
    assert captured.err.count("measuring the link") == 3
    assert rehearsed == ["eager"] * len(rehearsed) != []
    assert printed.count("Emulated devices, not real ones") == 2
    assert found["emulation"].startswith("Emulated devices")
    rows = {row["name"]: row for row in found["rows"]}
    assert list(rows) == ["one worker", "equal, in flight", "throughput", "eager", "eager, 2 at once"]
    assert [row["num_devices"] for row in rows.values()][::4] == [1, 2]
    assert "one process, whose rate counts for each device" in printed
    assert found["in_flight"] == 6
    assert (found["workers"], found["same"], found["pinned"]) == (["here", "second"], True, False)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--testbed", "pi4x3"], ["no testbed 'pi4x3'", "did you mean", "pi3x2_pi4x2"]),
        (["--testbed", "pi4x2@0M"], ["rate_bits_per_s is 0"]),
        (["--testbed", "bad.toml"], ["testbed bad.toml: device 1 has an unknown key 'slowness'", "slowdown"]),
        (["--testbed", "pi4x2", "--local", "2"], ["not allowed with"]),
        (["--testbed", "pi4x2", "--workers", "a:1"], ["not allowed with"]),
        (["--testbed", "pi4x2", "--threads", "2"], ["--testbed does not take --threads", "one core"]),
        (["--testbed", "pi4x2", "--objective", "throughput", "--html", "a"], ["throughput does not take --html"]),
        (["--testbed", "pi4x2", "--key", "k"], ["--testbed does not take --key"]),
    ],
)
def test_a_wrong_testbed_says_what_is_accepted(
    options: list[str], words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.toml").write_text(SPEC.replace("slowdown = 2", "slowness = 2"))
    with pytest.raises(SystemExit) as ended:
        main(["--model", "tiny_networks:chain", *options])
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert [word for word in words if word not in said] == []


def test_an_interrupted_comparison_leaves_nothing(tmp_path: Path):
    """Ctrl-C to the whole group, as a terminal sends it, in the middle of the rounds."""
    (tmp_path / "two.toml").write_text(SPEC)
    command = [
        sys.executable, "-m", "edgedi.cli.bench", "--model", "tiny_networks:chain", "--input", "1x3x16x16",
        "--testbed", f"{tmp_path / 'two.toml'}@1G", "--against", "none", "--rounds", "1000000",
    ]  # fmt: skip
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True, cwd=CLI
    )
    assert process.stderr is not None
    while "1000000 rounds" not in (line := process.stderr.readline()):
        assert line, "it ended by itself"
    assert len(left(process.pid)) == (0 if WHY_NOT else 4)
    os.killpg(process.pid, signal.SIGINT)
    said = process.stderr.readlines()
    assert process.wait(60) == 130, "".join(said)
    process.stderr.close()
    assert left(process.pid) == set()
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


def test_the_relay_ends_when_its_owner_is_killed():
    code = (
        "from edgedi.bench.testbed.start import RelayProcess\n"
        "import sys\n"
        "relay = RelayProcess([1e9])\n"
        "relay.connect([])\n"
        "print(relay._process.pid, flush=True)\n"
        "sys.stdin.read()"
    )
    owner = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    assert owner.stdin is not None
    relay = os.pidfd_open(int(owner.stdout.readline()))
    owner.kill()
    owner.wait()
    with selectors.DefaultSelector() as selector:
        selector.register(relay, selectors.EVENT_READ)
        assert selector.select(60), "the relay still runs"
    os.close(relay)
    owner.stdin.close()
    owner.stdout.close()


def test_an_engine_of_an_emulated_device_is_timed_by_its_processor_time():
    at_s = {"clock": 1.0, "cpu": 5.0}
    here = stopwatch_of(1.0, clock=lambda: at_s["clock"], cpu=lambda: at_s["cpu"])
    slow = stopwatch_of(10.0, clock=lambda: at_s["clock"], cpu=lambda: at_s["cpu"])
    before = here(), slow()
    at_s = {"clock": 2.0, "cpu": 5.25}
    assert (here() - before[0], slow() - before[1]) == (1.0, 2.5)


@pytest.mark.parametrize("keys", [True, False])
def test_the_price_of_a_message_is_half_of_what_both_ends_take(keys: bool):
    ticks, cores = itertools.count(), os.sched_getaffinity(0)
    price, passing = measured_price(
        keys=keys, thread=lambda: 1e-6 * next(ticks), process=lambda: 5e-6 * next(ticks), calm=Calm(lambda: 1.0)
    )
    assert price.message_s == pytest.approx(1e-6)  # looked at twice for each end
    assert price.byte_s == pytest.approx(0, abs=1e-18)
    assert passing.message_s > 0
    assert passing.byte_s >= 0
    assert os.sched_getaffinity(0) == cores


def test_passing_on_is_what_other_threads_took():
    readings = iter([1.0, *[0.0] * 10_000])
    spent = itertools.count(3.0, 6.0)  # before and after the messages of a batch
    _, passing = measured_price(
        keys=False, thread=lambda: next(readings, 0.0), process=lambda: next(spent), calm=Calm(lambda: 1.0)
    )
    assert passing.message_s == pytest.approx(6.0 / 60)
    assert passing.byte_s == 0


def test_a_spec_says_how_work_counts():
    text = '[link]\nrate_bits_per_s = 1e9\n[[devices]]\nname = "one"\nslowdown = 10\n'
    assert parse_spec(text, name="one").work == "warm"
    assert parse_spec('work = "in place"\n' + text, name="one").work == "in place"
    with pytest.raises(ValueError, match=re.escape("testbed one: work is 'cold': give 'warm' or 'in place'")):
        parse_spec('work = "cold"\n' + text, name="one")
