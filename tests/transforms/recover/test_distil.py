"""A damaged network learns the original's answers again: on time, reproducibly, and from where it was killed."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import edgedi
from edgedi.errors import CompactionError
from edgedi.transforms.data import Data
from edgedi.transforms.exact.simplify import simplify
from edgedi.transforms.recover.distil import Recipe, distil
from edgedi.transforms.recover.norms import fold, norms_of, put_back
from edgedi.transforms.score import Score
from edgedi.transforms.store import EVERY_S, Store
from edgedi.transforms.task import Budget
from tests.transforms.recover.toy import (
    Batches,
    Clock,
    Killed,
    accuracy,
    batches_of,
    blobs,
    cut,
    network,
    same_weights,
    train_data,
    trained,
)

X = blobs(8)[0]


@pytest.fixture(scope="module")
def original() -> nn.Module:
    return trained()


@pytest.fixture(scope="module")
def damaged(original: nn.Module) -> nn.Module:
    return cut(simplify(original, (X,))[0], 2)


def test_a_damaged_network_answers_as_well_again(original: nn.Module, damaged: nn.Module):
    before, weights = copy.deepcopy(damaged), copy.deepcopy(original)
    small = distil(damaged, original, train_data(), num_steps=60).model
    assert accuracy(original) > 0.95
    assert accuracy(damaged) < accuracy(original) - 0.1
    assert accuracy(small) >= accuracy(original) - 0.01
    assert same_weights(damaged, before)
    assert same_weights(original, weights)
    assert [type(part) for part in small] == [type(part) for part in damaged]
    assert not any(part.training for part in small.modules())


def test_without_labels(original: nn.Module, damaged: nn.Module):
    data = Data([x for x, _ in batches_of(*blobs())], "train", labelled=False)
    assert accuracy(distil(damaged, original, data, num_steps=60).model) >= accuracy(original) - 0.01


def test_a_network_whose_normalisations_are_still_there(original: nn.Module):
    small = distil(network(3), original, train_data(), num_steps=100).model
    assert list(norms_of(small)) == ["1"]
    assert accuracy(small) >= 0.9


def test_the_same_seed_gives_the_same_weights_and_leaves_random_numbers_alone(original: nn.Module, damaged: nn.Module):
    torch.manual_seed(5)
    expected = torch.rand(2).tolist()
    torch.manual_seed(5)
    one = distil(damaged, original, train_data(), num_steps=12, seed=1).model
    assert torch.rand(2).tolist() == expected
    torch.manual_seed(6)
    assert same_weights(one, distil(damaged, original, train_data(), num_steps=12, seed=1).model)
    assert not same_weights(one, distil(damaged, original, train_data(), num_steps=12, seed=2).model)


def test_what_the_user_froze_says_so_still(original: nn.Module, damaged: nn.Module):
    frozen = copy.deepcopy(damaged)
    frozen[3].weight.requires_grad_(False)
    small = distil(frozen, original, train_data(), num_steps=2).model
    assert [name for name, parameter in small.named_parameters() if not parameter.requires_grad] == ["3.weight"]


# --- other tasks than classification ----------------------------------------------------------------------------------


class Segmenter(nn.Module):
    """Whether each pixel of an image is bright."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, width, 3, padding=1), nn.Conv2d(width, 2, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": self.second(torch.relu(self.first(x)))}


def seeded(make: Any, seed: int = 0) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make().eval()


def test_segmentation_by_a_loss_of_the_users():
    x = torch.randn(64, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    labels = (x[:, 0] > 0).long()
    original, small = seeded(lambda: Segmenter(8)), seeded(lambda: Segmenter(2), seed=1)
    with torch.no_grad():  # an original that answers right
        original.first.weight.zero_()
        original.first.weight[0, 0, 1, 1] = 4
        original.second.weight.zero_()
        original.second.weight[1, 0] = 4
        original.first.bias.zero_()
        original.second.bias.copy_(torch.tensor([0.5, 0.0]))
    seen = []

    def loss(outputs: dict[str, Tensor], given: Tensor) -> Tensor:
        seen.append(given.shape)
        return nn.functional.cross_entropy(outputs["out"], given)

    data = Data(batches_of(x, labels, 16), "train", labelled=True)
    found = distil(small, original, data, num_steps=150, loss=loss).model

    def right(model: nn.Module) -> float:
        return float((model(x)["out"].argmax(1) == labels).float().mean())

    with torch.no_grad():
        assert right(original) > 0.9
        assert right(found) > max(0.9, right(small) + 0.1)
    assert seen == [torch.Size([16, 6, 6])] * 150


def test_regression():
    x = torch.randn(96, 4, generator=torch.Generator().manual_seed(0))
    original = seeded(lambda: nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 1)))
    small = seeded(lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1)), seed=1)
    with torch.no_grad():
        target = original(x)
    data = Data(batches_of(x, target, 16), "train", labelled=True)
    found = distil(small, original, data, num_steps=300, loss=nn.functional.mse_loss).model

    def unexplained(model: nn.Module) -> float:
        with torch.no_grad():
            return float((model(x) - target).square().mean() / target.var())

    assert unexplained(small) > 0.5
    assert unexplained(found) < 0.05


# --- normalisations ---------------------------------------------------------------------------------------------------


def test_normalisations_come_back_without_a_change_and_go_again(original: nn.Module, damaged: nn.Module):
    student = copy.deepcopy(damaged)
    assert put_back(student, original, [*Data([X], "train", labelled=False)])
    assert list(norms_of(student)) == ["1"]
    with torch.no_grad():
        assert torch.allclose(student(X), damaged(X), atol=1e-5)
        student[1].running_mean.add_(0.3)
        student[1].weight.mul_(1.5)
        expected = student(X)
        fold(student, (X,))
        assert torch.allclose(student(X), expected, atol=1e-5)
    assert student.state_dict().keys() == damaged.state_dict().keys()


def test_where_a_normalisation_could_not_be_folded_again_there_is_none():
    class Shared(nn.Module):
        """A convolution whose output goes past the normalisation, too."""

        def __init__(self, norm: nn.Module) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(2, 4, 1), norm

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            return x + self.norm(x)

    student = Shared(nn.Identity()).eval()
    assert not put_back(student, Shared(nn.BatchNorm2d(4)).eval(), [*Data([X], "train", labelled=False)])
    assert norms_of(student) == {}


# --- progress, time and what goes wrong -------------------------------------------------------------------------------


def test_lines_of_progress_tell_score_and_time_left(original: nn.Module, damaged: nn.Module):
    lines: list[str] = []
    clock = Clock()
    distil(
        damaged, original, train_data(clock=clock), budget=Budget(200.0, clock), say=lines.append,
        judge=lambda model: Score(value=0.5, count=100),
    )  # fmt: skip
    assert len(lines) == 10
    assert re.fullmatch(r"step 96 of 188, loss \d\S*, score 50.00% \[40.38%, 59.62%\], 92 s left", lines[4])
    assert re.fullmatch(r"step 188 of 188, loss \d\S*, 0 s left", lines[9])


@pytest.mark.parametrize("each_s", [0.5, 1.0, 3.0])
def test_a_budget_is_met_within_a_tenth(original: nn.Module, damaged: nn.Module, each_s: float):
    clock = Clock()
    data = train_data(clock=clock, each_s=each_s)
    started_s = clock.now_s
    distil(damaged, original, data, budget=Budget(120.0, clock))
    assert 0.9 * 120 <= clock.now_s - started_s <= 1.1 * 120


def test_time_of_scoring_is_part_of_the_budget(original: nn.Module, damaged: nn.Module):
    clock = Clock()
    data = train_data(clock=clock)
    started_s = clock.now_s

    def judge(model: nn.Module) -> Score:
        clock.now_s += 4.0
        return Score(value=0.0)

    distil(damaged, original, data, budget=Budget(300.0, clock), judge=judge)
    assert 0.9 * 300 <= clock.now_s - started_s <= 1.1 * 300


@pytest.mark.parametrize(("judge_s", "times"), [(1.0, 9), (5.0, 4), (12.0, 1), (40.0, 0)])
def test_scores_on_the_way_take_a_tenth_of_the_time_at_most(
    original: nn.Module, damaged: nn.Module, judge_s: float, times: int
):
    clock, scored = Clock(), list[float]()
    data = train_data(clock=clock)
    started_s = clock.now_s

    def judge(model: nn.Module) -> Score:
        clock.now_s += judge_s
        scored.append(judge_s)
        return Score(value=0.0)

    distil(damaged, original, data, budget=Budget(300.0, clock), judge=judge, judge_s=judge_s)
    assert len(scored) == times
    assert 0.9 * 300 <= clock.now_s - started_s <= 1.1 * 300


def test_neither_steps_nor_seconds(original: nn.Module, damaged: nn.Module):
    for given in ({}, {"num_steps": 3, "budget": Budget(3.0)}):
        with pytest.raises(ValueError, match="give num_steps or budget, and not both"):
            distil(damaged, original, train_data(), **given)


def test_a_loss_that_is_no_number(original: nn.Module, damaged: nn.Module):
    def loss(outputs: Tensor, labels: Tensor) -> Tensor:
        return outputs.sum() * float("nan")

    with pytest.raises(CompactionError, match="training came to a gradient of nan at step 0; are inputs"):
        distil(damaged, original, train_data(), num_steps=3, loss=loss)


def test_a_step_of_one_input(original: nn.Module, damaged: nn.Module):
    data = Data(batches_of(*blobs(4), size=1), "train", labelled=True)
    small = distil(damaged, original, data, num_steps=3).model
    assert not same_weights(small, damaged)


# --- killed, and taken up again ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kill_after", "num_kept"), [(7, 0), (21, 13), (32, 22)])
def test_a_killed_training_ends_as_if_it_had_not_been(
    original: nn.Module, damaged: nn.Module, tmp_path: Path, kill_after: int, num_kept: int
):
    expected = distil(damaged, original, train_data(), num_steps=25, seed=3).model
    clock = Clock()
    batches = Batches(batches_of(*blobs()), clock, each_s=EVERY_S / 3)
    data = Data(batches, "train", labelled=True)
    batches.kill_after = batches.num_read + kill_after
    with pytest.raises(Killed):
        distil(damaged, original, data, num_steps=25, seed=3, slot=Store(tmp_path, clock=clock).slot("training"))
    store = Store(tmp_path, clock=clock)
    kept = store.slot("training").load()
    steps = 0 if kept is None else kept["schedule"]["step"]
    assert steps == num_kept
    found = distil(damaged, original, train_data(), num_steps=25, seed=3, slot=store.slot("training"))
    assert same_weights(found.model, expected)
    assert found.num_steps == 25  # those before the kill are its own


def test_the_recipe_says_how_it_is_done(original: nn.Module, damaged: nn.Module):
    usual = distil(damaged, original, train_data(), num_steps=5).model
    for other in (
        Recipe(learning_rate=0.01), Recipe(temperature=8.0), Recipe(blends=1.0), Recipe(average=1.0),
        Recipe(label_share=0.9), Recipe(momentum=0.5), Recipe(weight_decay=0.1),
    ):  # fmt: skip
        assert not same_weights(usual, distil(damaged, original, train_data(), num_steps=5, recipe=other).model)


def test_a_process_that_is_killed_leaves_what_another_goes_on_from(
    original: nn.Module, damaged: nn.Module, tmp_path: Path
):
    program = """
import torch
from edgedi.transforms import store
from edgedi.transforms.exact.simplify import simplify
from edgedi.transforms.recover.distil import distil
from tests.transforms.recover.toy import blobs, cut, train_data, trained

torch.set_num_threads({threads})
store.EVERY_S = 0.0
original = trained()
damaged = cut(simplify(original, (blobs(8)[0],))[0], 2)
slot = store.Store({folder!r}).slot("training")
distil(damaged, original, train_data(), num_steps=300, slot=slot, say=lambda line: print(line, flush=True))
"""
    command = [sys.executable, "-c", program.format(folder=str(tmp_path), threads=torch.get_num_threads())]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(edgedi.__file__).parent.parent) as child:
        assert child.stdout is not None
        assert child.stdout.readline().startswith("step 30 of 300")
        child.kill()
    slot = Store(tmp_path).slot("training")
    kept = slot.load()
    assert kept is not None
    assert kept["schedule"]["step"] >= 29
    found = distil(damaged, original, train_data(), num_steps=300, slot=slot).model
    assert same_weights(found, distil(damaged, original, train_data(), num_steps=300).model)
