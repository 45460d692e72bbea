"""A change tried out gives what a whole run with the changed weights gives, whatever was kept of the first run."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from edgedi.transforms.prune import probe as probe_module
from edgedi.transforms.prune.probe import INPUTS, Probe
from edgedi.transforms.prune.watch import Call, Watch


class Residual(nn.Module):
    """Writes into what layers make, runs one of them twice, and has one that is not watched."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.twice = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.up, self.last = nn.ConvTranspose2d(4, 4, 2, stride=2), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu_()
        x += self.twice(x)
        x += self.twice(x).tanh_()
        return self.last(self.up(x).mean((2, 3)))


@pytest.fixture
def network() -> Residual:
    torch.manual_seed(0)
    return Residual().eval()


@pytest.mark.parametrize("changed", [["first"], ["twice"], ["up"], ["last"], ["last", "twice"]])
@pytest.mark.parametrize("memory_bytes", [0, 30_000, 2**30])
def test_a_change_is_that_of_a_whole_run(
    network: Residual, changed: list[str], memory_bytes: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(probe_module, "MEMORY_BYTES", memory_bytes)
    x = torch.randn(INPUTS + 3, 3, 8, 8)
    probe = Probe(network, (x,))
    small, weights = copy.deepcopy(network), {}
    for name in changed:
        layer = small.get_submodule(name)
        with torch.no_grad():
            layer.weight *= 0.5
            layer.bias += 0.1
        weights[name] = (layer.weight.double(), torch.full((5,), 0.1) if name == "last" else torch.full((4,), 0.1))
    with torch.no_grad():
        before, after = network(x[:INPUTS]), small(x[:INPUTS])
    wanted = float((after - before).square().sum() / (before - before.mean()).square().sum())
    assert wanted > 1e-6
    assert [probe.change(weights) for _ in range(2)] == pytest.approx([wanted, wanted], rel=1e-4)
    assert probe.change({}) == pytest.approx(0.0, abs=1e-12)


def test_what_runs_before_a_changed_layer_is_not_computed_again(network: Residual, monkeypatch: pytest.MonkeyPatch):
    probe, ran = Probe(network, (torch.randn(2, 3, 8, 8),)), list[str]()

    def watched(model: nn.Module, names: list[str], see: Callable[[Call], Tensor]) -> Watch:
        def run(call: Call) -> Tensor:
            ran.append(call.name)
            return call.run()

        return Watch(model, names, lambda call: see(replace(call, run=partial(run, call))))

    monkeypatch.setattr(probe_module, "Watch", watched)
    everything = ["first", "twice", "twice", "last"]
    for layer, wanted in (("first", everything), ("twice", everything[1:]), ("last", ["last"]), ("up", everything)):
        ran.clear()
        probe.change({layer: (network.get_submodule(layer).weight, None)})
        assert ran == wanted
