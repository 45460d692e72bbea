"""``compact`` with the step "scar" on a network that has learnt something: accuracy stays, a kill changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from edgedi.transforms import store
from edgedi.transforms.compact import compact
from edgedi.transforms.recover import training
from edgedi.transforms.scar import Scar
from tests.transforms.recover.toy import Killed, accuracy, batches_of, blobs, same_weights, trained


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return trained(16)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "STEPS_WITHOUT_BUDGET", 150)


def small_of(model: nn.Module, **options: Any) -> nn.Module:
    x, y = blobs()
    defaults = {
        "train": batches_of(x, y), "validate": batches_of(*blobs(300, 5)), "steps": ("simplify", "scar"),
        "scar_ratio": 4, "tolerance": 0.03,
    }  # fmt: skip
    return compact(model, x[:1], **{**defaults, **options})


def blocks(model: nn.Module) -> list[str]:
    return [name for name, part in model.named_modules() if isinstance(part, Scar)]


def test_a_trained_network_of_blocks_is_as_accurate(model: nn.Module):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    small = small_of(model)
    assert blocks(small) == ["0", "3"]
    assert accuracy(small) >= accuracy(model) - 0.05
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_the_report_counts_a_block_in_place_of_its_layer(model: nn.Module):
    report = small_of(model).compaction
    step = report.steps[-1]
    assert step.name == "scar"
    assert step.score.value >= report.score.value - 0.03
    first, norm, second, head = report.layers
    assert (first.before.kind, first.after.kind) == ("Conv2d", "Conv2d + Conv2d + Linear + Conv2d")
    assert first.after.size.parameters == 2 * 4 + 9 * 16 + 16 + 4 * 16 + 16
    assert second.after.size.macs == 16 * (16 * 2 + 9 * 4 + 2 * 8) + 4
    assert norm.after is None
    assert not head.changed
    assert step.after.macs == sum(layer.after.size.macs for layer in report.layers if layer.after)


def test_where_accuracy_does_not_hold_layers_stay(model: nn.Module, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(training, "STEPS_WITHOUT_BUDGET", 1)
    small = small_of(model, tolerance=0.0, metric=lambda small, data: -len(blocks(small)))
    assert blocks(small) == []
    assert small.compaction.steps[-1].note == "left alone: with SCAR blocks the score did not hold"
    assert [point.score for point in small.compaction.curve] == [0, 0, -2, -1, 0]


@pytest.mark.parametrize(
    "line",
    [
        pytest.param("scar: 0 at 1/4", marks=pytest.mark.slow),
        "scar: 3 at 1/4",
        "scar: step",
        pytest.param("scar: 2 layers", marks=pytest.mark.slow),
    ],
)
def test_a_run_that_was_killed_ends_with_the_same_network(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, line: str
):
    monkeypatch.setattr(store, "EVERY_S", 0.0)
    monkeypatch.setattr(training, "STEPS_WITHOUT_BUDGET", 12)
    monkeypatch.setattr("edgedi.transforms.replace.fits.AT_ONCE", 1)
    options: dict[str, Any] = {"metric": lambda small, data: -len(blocks(small)), "tolerance": 1.0}
    whole = small_of(model, **options)
    assert len(blocks(whole)) == 1

    def kill(said: str) -> None:
        if said.startswith(line):
            raise Killed

    with pytest.raises(Killed):
        small_of(model, checkpoint=tmp_path, progress=kill, **options)
    lines: list[str] = []
    again = small_of(model, checkpoint=tmp_path, progress=lines.append, **options)
    assert same_weights(again, whole)
    assert again.compaction.curve == whole.compaction.curve
    assert sum("saves" in said for said in lines) == {"scar: 0 at 1/4": 1, "scar: 3 at 1/4": 2}.get(line, 0)


@pytest.mark.parametrize("ratio", [0, 2, 16, "none", None, 4.0, True])
def test_ratios_that_are_not_there(model: nn.Module, ratio: Any):
    with pytest.raises(ValueError, match=r'scar_ratio is .*; give "auto", 4 or 8'):
        small_of(model, scar_ratio=ratio)


def test_the_step_needs_something_to_learn_from(model: nn.Module):
    with pytest.raises(ValueError, match=r"the step 'scar' needs data: pass train=\.\.\."):
        small_of(model, train=None)
