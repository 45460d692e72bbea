"""What ``compact`` makes and ``load`` brings back runs on real worker processes, split, and gives its own answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from edgedi import compact, distribute, load, save
from edgedi.runtime.session.verify import relative_difference
from edgedi.runtime.worker.local_workers import LocalWorkers
from edgedi.transforms.recover import training
from edgedi.transforms.scar import Scar
from tests.runtime.networks import Small, image, small
from tests.transforms.planted import randomised, widths

TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def addresses() -> Iterator[list[str]]:
    started = LocalWorkers(2)
    assert len(started.addresses) == 2
    yield started.addresses
    started.stop()


@pytest.fixture(scope="module")
def model() -> Small:
    return randomised(small())


@pytest.fixture(scope="module")
def pruned(model: Small) -> nn.Module:
    found = compact(model, image(), calibration=image(batch=32, seed=2), target={"macs": 0.6})
    assert all(width[1] < 16 for name, width in widths(found).items() if name in ("stem", "body.0", "last"))
    return found


@pytest.fixture(scope="module")
def blocks(model: Small) -> nn.Module:
    train, steps = image(batch=32, seed=2), ("simplify", "scar")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(training, "STEPS_WITHOUT_BUDGET", 3)
        found = compact(model, image(), train=train, steps=steps, target={"macs": 0.4}, scar_ratio=4)
    assert isinstance(found.last, Scar)
    return found


def check_answers(model: nn.Module, addresses: list[str]) -> None:
    """Of several inputs, computed by both workers, with pieces that went from one to the other."""
    with distribute(model, image(), addresses, planner="equal") as session:
        for seed in range(3):
            x = image(seed=seed)
            assert relative_difference(session(x), own(model, x)) <= TOLERANCE
        statistics = session.statistics()
        assert any(segment.axis == "rows" for segment in session.plan.segments)
    assert statistics.local_answers == 0
    assert all(values["sent_bytes"] > 0 for values in statistics.workers.values())


def own(model: nn.Module, x: Tensor) -> Tensor:
    with torch.inference_mode():
        return model(x)


def test_a_pruned_network(pruned: nn.Module, addresses: list[str]):
    check_answers(pruned, addresses)


def test_a_network_with_scar_blocks(blocks: nn.Module, addresses: list[str]):
    check_answers(blocks, addresses)


@pytest.mark.parametrize("kind", ["pruned", "blocks"])
def test_a_loaded_network(kind: str, request: pytest.FixtureRequest, addresses: list[str], tmp_path: Path):
    made: nn.Module = request.getfixturevalue(kind)
    save(made, tmp_path, image())
    again = load(tmp_path)
    assert relative_difference(own(again, image()), own(made, image())) <= TOLERANCE
    check_answers(again, addresses)
