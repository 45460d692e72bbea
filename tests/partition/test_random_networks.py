"""Random CNNs, split at random, give their own answer: float64 to 1e-11 on plain torch, float32 to 2e-5 fused."""

from __future__ import annotations

import logging
import random
import warnings
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import HealthCheck, assume, given, note, seed, settings
from hypothesis import strategies as st

from edgedi.partition.capture.capture import Capture, capture_model
from edgedi.partition.plan.lowering import lower
from edgedi.partition.plan.plan import Plan
from tests.exactness import TOLERANCE, cast, whole_maps, worst_layer, worst_output
from tests.partition.random_networks import Network, networks
from tests.plans import axis_plan, lower_borders_first, random_plan

PROFILE = settings(
    deadline=None, print_blob=True, derandomize=False, suppress_health_check=list(HealthCheck), database=None
)
CHUNKS = 4
"""The networks come in chunks, so that a failure names a small seed to run again."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small maps: threads cost more than they give. And torch's trace of every export is no help to a reader."""
    logging.getLogger("torch.__trace").setLevel(logging.CRITICAL)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _plans(capture: Capture, rng: random.Random) -> list[Plan]:
    graph = capture.graph
    workers = rng.choice((2, 3, 5, 7))
    return [
        axis_plan(graph, workers, rng.choice(("rows", "columns")), depth=rng.randint(1, 6)),
        random_plan(graph, rng.choice((1, 2, 3, 5)), rng),
    ]


def check(network: Network, plan_seed: int) -> None:
    """Capture, split at random, compare every computed piece and the outputs."""
    rng = random.Random(plan_seed)
    torch.manual_seed(plan_seed)
    x = torch.randn(network.input, dtype=torch.float64)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        truth = network(x)
        capture = capture_model(network, x)
    inputs = capture.flatten((x,))
    expected = whole_maps(capture, inputs)
    assume(
        all(map_.double().abs().max() > 1e-6 for map_ in expected.values())
    )  # else rounding is compared with rounding
    assert worst_output(capture.unflatten(expected), truth) <= TOLERANCE["float64"], "captured, whole"
    plans = _plans(capture, rng)
    for plan in plans:
        note(str(plan))
        lowered = rng.choice((lower, lower_borders_first, partial(lower_borders_first, depth=0)))
        worst = worst_layer(capture, plan, inputs, expected, fast=False, lowered=lowered)
        assert worst.passes, f"float64: {worst}\n{lowered(plan, capture.graph)}\n{capture.graph}"
    if any(layer.op == "opaque" for layer in capture.graph.layers):
        return
    single = cast(capture, torch.float32)
    floats = {name: tensor.float() for name, tensor in inputs.items()}
    exact = whole_maps(cast(single, torch.float64), {name: tensor.double() for name, tensor in floats.items()})
    plan = replace(plans[-1], graph_digest="")
    worst = worst_layer(single, plan, floats, exact, fast=True, lowered=rng.choice((lower, lower_borders_first)))
    assert worst.passes, f"float32 fused: {worst}\n{plans[-1]}\n{capture.graph}"


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_random_networks_give_their_own_answer(chunk: int):
    @seed(20251120 + chunk)
    @settings(PROFILE, max_examples=80)
    @given(networks(), st.integers(0, 10**6))
    def run(network: Network, plan_seed: int) -> None:
        note(repr(network))
        check(network, plan_seed)

    run()
