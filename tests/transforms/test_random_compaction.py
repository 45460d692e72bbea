"""Random CNNs with random channels killed, repeated and made constant: what comes out is exact, to 1e-11 in float64."""

from __future__ import annotations

import logging
import random
import warnings
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, assume, given, note, seed, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from edgedi.transforms.compact import compact
from edgedi.transforms.exact import simplify as module
from edgedi.transforms.measure import difference
from tests.partition.random_networks import Network, networks
from tests.transforms.planted import kill, repeat, widths

PROFILE = settings(
    deadline=None, print_blob=True, derandomize=False, suppress_health_check=list(HealthCheck), database=None
)
CHUNKS = 2
EXAMPLES = 40


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One thread for small maps, no trace of exports; and the first attempt has to be right."""
    logging.getLogger("torch.__trace").setLevel(logging.CRITICAL)
    before, simplify = torch.get_num_threads(), module._simplify_in_place

    def once(model: nn.Module, arguments: tuple[Tensor, ...], how: str) -> None:
        assert how == "all", "the first attempt was wrong"
        simplify(model, arguments, how)

    monkeypatch.setattr(module, "_simplify_in_place", once)
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Between(nn.Module):
    """``network`` between convolutions, so that its own first and last channels can go as well."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        channels = network.input[1]
        self.stem, self.network = nn.Conv2d(3, channels, 3, padding=1), network
        self.read = set(network.outputs)
        for index in range(len(network.steps), 0, -1):
            self.read |= set(network.reads[index - 1]) if index in self.read else set()
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outputs = network(torch.zeros(network.input, dtype=torch.float64))
        found = outputs if isinstance(outputs, tuple) else (outputs,)
        self.heads = nn.ModuleList(nn.Conv2d(output.shape[1], 2, 3, padding=1) for output in found)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = {0: F.relu(self.stem(x))}
        for index, (step, reads) in enumerate(zip(self.network.steps, self.network.reads, strict=True), 1):
            if index in self.read:  # one that nobody reads is in no exported graph, and would have to be left alone
                maps[index] = step(*(maps[read] for read in reads))
        return [head(maps[index]) for head, index in zip(self.heads, self.network.outputs, strict=True)]


@torch.no_grad()
def plant(network: nn.Module, rng: random.Random) -> list[str]:
    """In most convolutions and normalisations, some channels are killed, made constant, negative or repeated."""
    done = []
    for name, layer in network.named_modules():
        if not isinstance(layer, (nn.Conv2d, nn.BatchNorm2d)) or layer.bias is None or rng.random() < 0.3:
            continue
        count = len(layer.weight)
        some = rng.sample(range(count), rng.randint(0, count))
        kind = rng.choice(("zero", "constant", "negative", "equal"))
        if kind == "equal" and count > 1:
            repeat(layer, some[0] if some else 0, [*some, *rng.sample(range(count), 1)])
        elif kind == "negative":
            layer.weight[some] = -layer.weight[some].abs()
            layer.bias[some] = -0.1
        else:
            kill(layer, some, 0.0 if kind == "zero" else rng.choice((0.7, -0.4)))
        done.append(f"{name}: {kind} {some}")
    return done


def check(network: Network, plant_seed: int) -> bool:
    """Plant and compact; the answer to another input than the example is the same. Whether anything became smaller."""
    torch.manual_seed(plant_seed)
    model, shape = Between(network).double().eval(), (network.input[0], 3, *network.input[2:])
    note("; ".join(plant(model, random.Random(plant_seed))))
    x, other = (torch.randn(shape, dtype=torch.float64) for _ in range(2))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = model(other)
        assume(all(1e-6 < output.abs().max() < 1e12 for output in expected))  # else rounding is compared with rounding
        small = compact(model, x)
        found = small(other)
    note(f"{widths(model)} -> {widths(small)}")
    assert difference(found, expected) <= 1e-10
    return widths(small) != widths(model)


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_random_networks_keep_their_answer(chunk: int):
    smaller: list[bool] = []

    @seed(20251121 + chunk)
    @settings(PROFILE, max_examples=EXAMPLES)
    @given(networks(), st.integers(0, 10**6))
    def run(network: Network, plant_seed: int) -> None:
        note(repr(network))
        smaller.append(check(network, plant_seed))

    run()
    print(f"{sum(smaller)} of {len(smaller)} networks became smaller")
    assert sum(smaller) >= len(smaller) / 8
