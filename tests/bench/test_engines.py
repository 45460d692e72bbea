"""Engines in processes of their own: right answers from each that is installed, and failures that are told."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from edgedi.bench import engines
from edgedi.bench.comparison import run_comparison
from edgedi.bench.contenders import tensors_of
from edgedi.bench.cores import deal, usable_cores
from edgedi.bench.engine_contender import EngineContender, EngineFailed, save_tensors
from edgedi.bench.networks import load_network, random_input
from edgedi.bench.progress import Teller
from edgedi.bench.settings import ENGINE_NAMES, Settings
from edgedi.runtime.emulation.calm import CALM

CLI = Path(__file__).parent.parent / "cli"
SHAPES = {"tiny_networks:chain": ((1, 3, 16, 16),), "tiny_networks:nested": ((1, 3, 9, 7), (1, 1, 9, 7))}


@pytest.fixture(autouse=True)
def networks_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CLI)


@pytest.fixture
def started(tmp_path: Path) -> Iterator[list[EngineContender]]:
    """Whoever is put in here is ended."""
    contenders: list[EngineContender] = []
    yield contenders
    for contender in contenders:
        contender.close()
        assert not psutil.pid_exists(contender._process.pid)


def contender(
    engine: str, model: str, tmp_path: Path, started: list[EngineContender], **options: Any
) -> EngineContender:
    network = load_network(model)
    inputs = tuple(random_input(shape) for shape in SHAPES[model])
    tensors = save_tensors(network, [inputs], tmp_path)
    made = EngineContender(engine, model, tensors, usable_cores()[:1], 1, **options)
    started.append(made)
    return made


@pytest.mark.parametrize("engine", sorted(engines.ENGINES))
def test_an_engine_gives_the_networks_answer(engine: str, tmp_path: Path, started: list[EngineContender]):
    model = "tiny_networks:nested"
    if why := engines.what_is_missing(engine.removesuffix("-default")):
        pytest.skip(why)
    made = contender(engine, model, tmp_path, started)
    made.wait()
    with torch.inference_mode():
        own = tensors_of(load_network(model)(*(random_input(shape) for shape in SHAPES[model])))
    assert made.seconds(0) > 0
    answer = made.answer(0)
    assert [x.shape for x in answer] == [x.shape for x in own]
    tolerance = 2e-5 if made.precision == "f32" else 5e-2
    assert max(float((x - y).abs().max() / y.abs().max()) for x, y in zip(answer, own, strict=True)) <= tolerance
    assert made.version[0].isdigit()
    assert engine == "openvino-default" or made.precision == "f32"


@pytest.mark.parametrize("warm", [True, False])
def test_an_engine_on_an_emulated_device_counts_what_it_took_warm(
    warm: bool, tmp_path: Path, started: list[EngineContender]
):
    made = contender("eager", "tiny_networks:chain", tmp_path, started, slowdown=1000.0, warm=warm)
    made.wait()
    assert (len({made.seconds(0) for _ in range(5)}) == 1) == warm  # in its place it takes another time each time
    before_s = made.seconds(0)
    assert before_s > 0
    assert made.answer(0)[0].shape == (1, 5)
    made.rehearse_again()
    assert not warm or made.seconds(0) <= before_s


def test_an_engine_hears_of_the_fastest_loop(
    tmp_path: Path, started: list[EngineContender], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(CALM, "best_s", -1.0)  # which it cannot have found itself
    made = contender("eager", "tiny_networks:chain", tmp_path, started)
    with pytest.raises(EngineFailed, match="a loop of -1 seconds"):
        made.wait()


def test_an_engine_stays_on_its_core(tmp_path: Path, started: list[EngineContender]):
    made = contender("eager", "tiny_networks:chain", tmp_path, started)
    made.wait()
    assert psutil.Process(made._process.pid).cpu_affinity() == usable_cores()[:1]


def test_the_weights_are_those_of_the_caller(tmp_path: Path, started: list[EngineContender]):
    network, x = load_network("tiny_networks:chain"), random_input((1, 3, 16, 16))
    with torch.inference_mode():
        for weight in network.parameters():
            weight.add_(0.5)
        own = network(x)
    made = EngineContender("eager", "tiny_networks:chain", save_tensors(network, [(x,)], tmp_path), [], 1)
    started.append(made)
    made.wait()
    made.seconds(0)
    assert torch.equal(made.answer(0)[0], own)


def test_an_engine_that_cannot_take_the_network_says_why(tmp_path: Path, started: list[EngineContender]):
    made = EngineContender("eager", "tiny_networks:broken", tmp_path / "no-such-file", [], 1)
    started.append(made)
    with pytest.raises(EngineFailed, match=r"eager: ValueError: .*no such weights"):
        made.wait()


def test_an_engine_whose_process_dies_is_named(tmp_path: Path, started: list[EngineContender]):
    made = contender("eager", "tiny_networks:chain", tmp_path, started)
    made.wait()
    made._process.kill()
    made._process.wait()
    with pytest.raises(EngineFailed, match="eager: its process ended with -9"):
        made.seconds(0)


def test_a_failing_engine_is_noted_and_the_run_goes_on(monkeypatch: pytest.MonkeyPatch):
    def fail(self: EngineContender) -> None:
        raise EngineFailed("eager: it does not like this network")

    monkeypatch.setattr(EngineContender, "wait", fail)
    settings = Settings(
        model="tiny_networks:chain", shapes=((1, 3, 16, 16),), num_local=1, engines=("eager",), rounds=1
    )
    report = run_comparison(settings, Teller())
    assert report.not_compared == {"eager": "eager: it does not like this network"}
    assert report.singles == ()
    assert report.best is None
    assert [split.result.name for split in report.splits] == ["single", "oodp"]


def test_every_engine_of_the_command_line_can_be_made():
    assert set(ENGINE_NAMES) <= set(engines.ENGINES)


def test_what_is_missing_is_said_with_its_remedy(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert engines.what_is_missing("eager") is None
    assert engines.what_is_missing("openvino") == (
        "openvino not installed: pip install 'edgedi[openvino]' (in a checkout: pip install '.[openvino]')"
    )
    both = "pip install 'edgedi[onnxruntime]' (in a checkout: pip install '.[onnxruntime]')"
    onnx = f"onnxruntime and onnx not installed: {both}"
    assert engines.what_is_missing("onnxruntime") == onnx
    assert "g++" in (engines.what_is_missing("inductor") or "")


def test_cores_are_dealt_out_once_each_or_not_at_all():
    cores = usable_cores()
    assert deal(len(cores), 1) == [[core] for core in cores]
    assert deal(1, len(cores)) == [cores]
    assert deal(len(cores) + 1, 1) == [[]] * (len(cores) + 1)
