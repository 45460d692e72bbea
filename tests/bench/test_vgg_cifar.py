"""The network of the SCAR bar is of the size said, and its training ended at any time comes to the same result."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from bench import vgg_cifar
from bench.vgg_cifar import Images, Training, accuracy, augmented, network, train


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vgg_cifar, "BATCH", 8)


def tiny() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)
    )


def images(count: int = 40) -> Images:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(count, 3, 12, 12, generator=generator)
    return Images(pixels=pixels, labels=torch.randint(10, (count,), generator=generator))


def training(monkeypatch: pytest.MonkeyPatch, **options: int) -> Training:
    monkeypatch.setattr(vgg_cifar, "network", tiny)
    return Training(images(), **{"epochs": 2, "seed": 0, **options}, device="cpu", precision="float32")


def test_the_network_is_of_the_size_said():
    model = network().eval()
    assert sum(parameter.numel() for parameter in model.parameters()) == 14_728_266
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    assert counter.get_total_flops() // 2 == 313_201_664


def test_images_are_mirrored_and_shifted_and_nothing_else():
    x = torch.arange(1.0, 301.0).reshape(1, 3, 10, 10).expand(200, -1, -1, -1)
    found = augmented(x, torch.Generator().manual_seed(0))
    mirrored = moved = 0
    for image in found:
        middle = image[:, 4:6, 4:6]  # always filled: shifts are of 4 pixels at most
        step = float(middle[0, 0, 1] - middle[0, 0, 0])
        assert abs(step) == 1
        assert torch.equal(middle[:, 1] - middle[:, 0], torch.full((3, 2), 10.0))
        mirrored, moved = mirrored + (step < 0), moved + bool((image == 0).any())
    assert 70 < mirrored < 130
    assert moved > 150
    assert torch.equal(found, augmented(x, torch.Generator().manual_seed(0)))


def weights(model: nn.Module) -> list[Tensor]:
    return list(model.state_dict().values())


def test_a_run_ended_anywhere_goes_on_to_the_same_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(vgg_cifar, "SAVE_S", 0.0)
    before = torch.get_rng_state()
    whole = training(monkeypatch)
    train(whole, images(), tmp_path / "none", seconds=0, device="cpu")
    while not whole.done:
        whole.advance()

    class EndedError(Exception):
        pass

    broken = training(monkeypatch)
    monkeypatch.setattr(broken, "advance", lambda: advance_until(broken, 7))

    def advance_until(run: Training, step: int) -> float:
        if run.step == step:
            raise EndedError
        return Training.advance(run)

    with pytest.raises(EndedError):
        train(broken, images(), tmp_path, seconds=1e9, device="cpu")
    again = training(monkeypatch)
    train(again, images(), tmp_path, seconds=1e9, device="cpu")
    assert again.step == 10
    assert all(map(torch.equal, weights(again.model), weights(whole.model)))
    assert all(map(torch.equal, torch.load(tmp_path / "model.pt", weights_only=True).values(), weights(whole.model)))
    assert [line.split(":")[0] for line in (tmp_path / "log.txt").read_text().splitlines()] == ["epoch 1", "epoch 2"]
    assert not list(tmp_path.glob("*.draft"))
    assert torch.equal(torch.get_rng_state(), before)


def test_seeds_differ_and_a_state_of_another_run_is_refused(monkeypatch: pytest.MonkeyPatch):
    one, other = training(monkeypatch), training(monkeypatch, seed=1)
    assert not torch.equal(weights(one.model)[0], weights(other.model)[0])
    with pytest.raises(ValueError, match="the state is of epochs=2, seed=1; remove it to start anew"):
        one.restore(other.state)


def test_accuracy_is_the_share_of_classes_found(monkeypatch: pytest.MonkeyPatch):
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.one_hot(torch.full((len(x),), 3), 10).float()

    given = images()
    assert accuracy(Constant(), given) == int((given.labels == 3).sum()) / 40
