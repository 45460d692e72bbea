"""The two sessions that are compared differ in how layers are made, and in nothing else."""

from __future__ import annotations

import pytest
import torch

from bench.border_rows import made_at_once, main, parts_of, plain_seconds, without_borders_first
from edgedi import distribute
from edgedi.partition.cost.cost import CostModel
from edgedi.partition.cost.overlap import lower_hiding
from edgedi.partition.cost.profile import ClusterProfile, LinkProfile
from tests.partition.graphs import chain
from tests.plans import axis_plan

SLOW_LINK = ClusterProfile(
    devices=ClusterProfile.uniform(2, flops_per_s=1e8, seconds_per_layer=1e-6).devices,
    link=LinkProfile(latency_s=1e-3, bytes_per_s=1e8),
)


def test_layers_in_parts_are_counted():
    graph = chain(rows=32, channels=8)
    found, model = axis_plan(graph, 2, depth=2), CostModel(graph, SLOW_LINK)
    assert (parts_of(lower_hiding(model, found)), parts_of(made_at_once(model, found))) == (4, 0)


def test_two_sessions_of_one_plan():
    torch.manual_seed(0)
    model = torch.nn.Sequential(*(torch.nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))).eval()
    x = torch.randn(1, 8, 32, 32)

    def opened():
        return distribute(model, x, 2, planner="equal", profile=SLOW_LINK, rebalance=False, progress=False)

    with opened() as first:
        with without_borders_first():
            whole = opened()
        with whole:
            assert first.plan.digest == whole.plan.digest
            assert (parts_of(first.programs), parts_of(whole.programs)) == (2, 0)
            assert torch.equal(first(x), whole(x))
            assert plain_seconds(whole, SLOW_LINK) > first.plan.predicted_s


def test_a_testbed_that_there_is_none_of_is_named(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["--testbed", "pi4x3@50M"])
    assert "--testbed pi4x3@50M: " in capsys.readouterr().err


@pytest.mark.parametrize("gain", ["nan", "-0.1"])
def test_a_gain_that_is_none_is_refused(gain: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--network", "resnet50", "--testbed", "pi4x2@50M", f"--least-gain={gain}"])
    assert f"--least-gain {gain}: a share, 0 or more" in capsys.readouterr().err
