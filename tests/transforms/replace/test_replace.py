"""The step "scar": what it replaces, what its score must hold, what comes back when it does not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgedi.errors import CompactionError
from edgedi.partition.capture.capture import capture_model
from edgedi.partition.plan.lowering import lower
from edgedi.runtime.execution.reference import InProcess
from edgedi.transforms.data import Data
from edgedi.transforms.exact.simplify import simplify
from edgedi.transforms.measure import measured
from edgedi.transforms.recover.distil import Trained
from edgedi.transforms.replace import fits
from edgedi.transforms.replace.block import Replace
from edgedi.transforms.replace.fit import Fitted, fit
from edgedi.transforms.replace.replace import replace_layers
from edgedi.transforms.scar import Scar
from edgedi.transforms.score import Score
from edgedi.transforms.size import Target
from edgedi.transforms.store import Slot, Store
from edgedi.transforms.task import Budget, Outcome, Task
from tests.exactness import TOLERANCE, relative
from tests.plans import axis_plan
from tests.transforms.planted import randomised


class Net(nn.Module):
    """Two convolutions that a block may replace, and a stem and a head that it may not."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(3, 16, 1, bias=False), nn.BatchNorm2d(16)
        self.wide, self.wide_norm = nn.Conv2d(16, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32)
        self.deep = nn.Conv2d(32, 32, 3, stride=2, padding=1)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem_norm(self.stem(x)).relu()
        x = self.wide_norm(self.wide(x)).relu()
        return self.head(self.deep(x).relu().mean((2, 3)))


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    x = images(1)
    return simplify(randomised(Net()), (x,))[0]


def images(count: int = 24) -> Tensor:
    return torch.randn(count, 3, 13, 11, generator=torch.Generator().manual_seed(7))


def task_of(model: nn.Module, **options: Any) -> Task:
    defaults = {
        "original": model, "arguments": (images(1),), "say": lambda line: None, "budget": Budget(None, lambda: 0.0),
        "train": Data(images(), "train", labelled=False), "scar_ratio": 4,
        "judge": lambda model: Score(value=1.0),
    }  # fmt: skip
    return Task(**{**defaults, **options})


def untrained(student: nn.Module, task: Task, budget: Budget, slot: Slot) -> Trained:
    return Trained(model=student, num_steps=7)


def replaced(outcome: Outcome) -> list[str]:
    return [name for name, part in outcome.model.named_modules() if isinstance(part, Scar)]


def judge_of(scores: dict[int, float]) -> Callable[[nn.Module], Score]:
    """By the number of blocks."""
    return lambda model: Score(value=scores[sum(isinstance(part, Scar) for part in model.modules())])


def test_all_layers_that_pay_are_replaced(model: nn.Module):
    before = copy.deepcopy(model.state_dict())
    outcome = replace_layers(model, task_of(model), untrained)
    assert replaced(outcome) == ["wide", "deep"]
    assert outcome.edits == (Replace(ratios={"wide": 4, "deep": 4}),) or outcome.edits == (
        Replace(ratios={"deep": 4, "wide": 4}),
    )
    macs = [measured(network, (images(1),))[2].macs for network in (model, outcome.model)]
    deep, wide = 7 * 6 * 9 * 32 * 32, 13 * 11 * 9 * 16 * 32
    blocks = (143 * 32 * 8 + 42 * (9 * 64 + 8 * 32) + 64) + 143 * (16 * 8 + 9 * 64 + 8 * 32) + 64
    assert macs[0] - macs[1] == deep + wide - blocks
    assert not any(module.training for module in outcome.model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert outcome.note.startswith("blocks for ")
    assert outcome.num_steps == 7


def test_the_answers_before_training_are_near_those_of_the_layers(model: nn.Module):
    def off(small: nn.Module) -> float:
        with torch.no_grad():
            return float((small(images()) - model(images())).square().sum())

    fitted = replace_layers(model, task_of(model), untrained).model
    torch.manual_seed(0)
    unfitted = Replace(ratios={"wide": 4, "deep": 4}).apply(copy.deepcopy(model), (images(1),))
    assert off(fitted) < 0.05 * off(unfitted)


def test_a_training_has_half_of_the_time_left(model: nn.Module):
    seen: list[float] = []

    def train(student: nn.Module, task: Task, budget: Budget, slot: Slot) -> Trained:
        seen.append(budget.left_s)
        return Trained(model=student, num_steps=7)

    replace_layers(model, task_of(model, budget=Budget(50, lambda: 0.0)), train)
    replace_layers(model, task_of(model), train)
    assert seen == [25.0, float("inf")]


def test_where_training_fails_the_blocks_are_judged_as_they_were_fitted(model: nn.Module):
    def fail(student: nn.Module, task: Task, budget: Budget, slot: Slot) -> Trained:
        raise CompactionError("the loss is not a number")

    lines: list[str] = []
    outcome = replace_layers(model, task_of(model, say=lines.append), fail)
    assert replaced(outcome) == ["wide", "deep"]
    assert "scar: the loss is not a number" in lines


def test_without_anything_to_judge_by_nothing_is_replaced(model: nn.Module):
    outcome = replace_layers(model, task_of(model, judge=None), untrained)
    assert outcome.model is model
    assert outcome.note == "left alone: nothing says whether the score holds; pass validate=..."


def test_where_the_score_does_not_hold_half_of_them_stay(model: nn.Module):
    lines: list[str] = []
    task = task_of(model, judge=judge_of({2: 0.7, 1: 0.9}), least_score=0.9, say=lines.append)
    outcome = replace_layers(model, task, untrained)
    assert len(replaced(outcome)) == 1
    assert list(outcome.edits[0].ratios) == replaced(outcome)
    assert [(point.score, point.step) for point in outcome.curve] == [(0.7, "scar")]
    assert lines[-2].endswith("score 0.7, too little")
    assert lines[-1].endswith("score 0.9, enough")


def test_where_no_score_holds_the_network_comes_back(model: nn.Module):
    outcome = replace_layers(model, task_of(model, judge=judge_of({2: 0.7, 1: 0.8}), least_score=0.9), untrained)
    assert outcome.model is model
    assert outcome.edits == ()
    assert outcome.note == "left alone: with SCAR blocks the score did not hold"
    assert [point.score for point in outcome.curve] == [0.7, 0.8]
    assert outcome.curve[0].macs < outcome.curve[1].macs


def test_with_both_ratios_a_layer_goes_back_to_the_lower_one_first(model: nn.Module):
    ratios: list[list[int]] = []

    def train(student: nn.Module, task: Task, budget: Budget, slot: Slot) -> Trained:
        ratios.append([32 // part.squeeze.out_channels for part in student.modules() if isinstance(part, Scar)])
        return Trained(model=student, num_steps=7)

    task = task_of(model, scar_ratio=None, judge=lambda model: Score(value=0.0), least_score=0.5)
    replace_layers(model, task, train)
    assert ratios[0] == [8, 8]
    assert len(ratios) == 3
    assert sorted(ratios[1]) in ([4, 4], [8])
    assert len(ratios[2]) == 1


def test_nothing_is_replaced_where_it_costs_more():
    cheap = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 9, 3)).eval()
    outcome = replace_layers(cheap, task_of(cheap), untrained)
    assert outcome.model is cheap
    assert outcome.note == "left alone: no convolution costs less as a SCAR block"


def test_with_a_target_no_more_is_replaced_than_it_needs(model: nn.Module):
    macs = measured(model, (images(1),))[2].macs
    assert len(replaced(replace_layers(model, task_of(model, target=Target(macs=macs - 1)), untrained))) == 1
    both = _macs_of(replace_layers(model, task_of(model), untrained).model)
    assert len(replaced(replace_layers(model, task_of(model, target=Target(macs=both)), untrained))) == 2
    assert replace_layers(model, task_of(model, target=Target(macs=macs)), untrained).model is model


def test_with_a_target_of_parameters_no_more_is_replaced_than_it_needs(model: nn.Module):
    """ "deep" holds two thirds of what blocks could save, of 9216 + 32 and 4608 + 32 parameters."""
    whole = _parameters_of(model)
    deep, wide = 9248 - (32 * 8 + 9 * 64 + 64 + 256 + 32), 4640 - (16 * 8 + 9 * 64 + 64 + 256 + 32)

    def with_target(parameters: int) -> list[str]:
        return replaced(replace_layers(model, task_of(model, target=Target(parameters=parameters)), untrained))

    assert with_target(whole) == []
    assert with_target(whole - deep) == ["deep"]
    assert with_target(whole - deep - 1) == with_target(whole - deep - wide) == ["wide", "deep"]
    lines: list[str] = []
    target = Target(macs=10**6, parameters=whole - deep - wide - 1)
    outcome = replace_layers(model, task_of(model, target=target, say=lines.append), untrained)
    least = replace_layers(model, task_of(model), untrained).model
    assert outcome.note == (
        "left alone: the 2 layers that cost less as SCAR blocks would leave "
        f"{_macs_of(least):,} MACs and {whole - deep - wide:,} parameters, and that is not enough"
    )
    assert lines == []


def _parameters_of(model: nn.Module) -> int:
    return sum(tensor.numel() for tensor in model.parameters())


def _macs_of(model: nn.Module) -> int:
    return measured(model, (images(1),))[2].macs


def test_a_target_is_reached_whatever_that_scores(model: nn.Module):
    """Without a judge too; trained for all the time that there is, but only where "recover" does not do that."""
    seen: list[float] = []

    def train(student: nn.Module, task: Task, budget: Budget, slot: Slot) -> Trained:
        seen.append(budget.left_s)
        return Trained(model=student, num_steps=7)

    options: dict[str, Any] = {
        "target": Target(macs=_macs_of(model) - 1),
        "narrows": True,
        "budget": Budget(50, lambda: 0.0),
        "least_score": 0.9,
    }
    for judge in (judge_of({1: 0.1}), None):
        outcome = replace_layers(model, task_of(model, judge=judge, **options), train)
        assert len(replaced(outcome)) == 1
        assert list(outcome.edits[0].ratios) == replaced(outcome)
        assert outcome.num_steps == 7
        assert outcome.note.startswith("blocks for ")
        assert outcome.note.endswith("; nothing tells whether training helped: pass validate or calibration") == (
            judge is None
        )
    assert seen == [50.0, 50.0]
    outcome = replace_layers(model, task_of(model, recovers=True, **options), train)
    assert (len(replaced(outcome)), outcome.num_steps, len(seen)) == (1, 0, 2)
    late = {**options, "budget": Budget(50, lambda: 0.0, used_s=50.0)}
    assert replace_layers(model, task_of(model, **late), train).num_steps == 0


def test_a_training_that_makes_it_worse_is_not_kept(model: nn.Module):
    def spoil(student: nn.Module, task: Task, budget: Budget, slot: Slot) -> Trained:
        for parameter in student.parameters():
            parameter.data.zero_()
        return Trained(model=student, num_steps=7)

    def judge(model: nn.Module) -> Score:
        return Score(value=float(sum(float(parameter.detach().abs().sum()) for parameter in model.parameters())))

    outcome = replace_layers(model, task_of(model, target=Target(macs=_macs_of(model) - 1), judge=judge), spoil)
    assert outcome.num_steps == 0
    assert judge(outcome.model).value > 0


def test_for_a_target_that_cannot_be_reached_nothing_is_fitted(model: nn.Module):
    lines: list[str] = []
    least = _macs_of(replace_layers(model, task_of(model), untrained).model)
    outcome = replace_layers(model, task_of(model, target=Target(macs=least - 1), say=lines.append), untrained)
    assert outcome.model is model
    assert outcome.note == (
        f"left alone: the 2 layers that cost less as SCAR blocks would leave {least:,} MACs, and that is not enough"
    )
    assert lines == []


def test_fits_for_a_target_take_the_time_that_they_need(model: nn.Module, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("edgedi.transforms.replace.fits.AT_ONCE", 1)
    both = _macs_of(replace_layers(model, task_of(model), untrained).model)
    seconds = iter([0.0, *[100.0] * 99])
    task = task_of(model, target=Target(macs=both), budget=Budget(50, lambda: next(seconds)))
    assert replaced(replace_layers(model, task, untrained)) == ["wide", "deep"]


def test_without_time_left_nothing_is_trained(model: nn.Module):
    seconds = iter([0.0, *[100.0] * 99])
    outcome = replace_layers(model, task_of(model, budget=Budget(50, lambda: next(seconds))), untrained)
    assert outcome.model is model
    assert outcome.note == "left alone: no time to train SCAR blocks"


def test_fitting_takes_a_share_of_the_time(monkeypatch: pytest.MonkeyPatch):
    """Layers that save least are left alone once it is up; those of the first pass never."""
    monkeypatch.setattr("edgedi.transforms.replace.fits.AT_ONCE", 1)
    now, lines = [0.0], list[str]()

    def say(line: str) -> None:
        now[0] += 30.0
        lines.append(line)

    torch.manual_seed(0)
    network = randomised(Net())
    task = task_of(network, budget=Budget(100, lambda: now[0]), say=say)
    assert replaced(replace_layers(network, task, untrained)) == ["wide"]
    assert lines[1] == "scar: no time to fit 1 of 2 layers, which save least"


def test_killed_it_loses_the_fit_under_way_alone(model: nn.Module, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Each fit takes a third of a minute; all four are of layers whose inputs are recorded in one pass."""
    now_s, fitted = 0.0, list[tuple[int, int]]()
    expected = replace_layers(model, task_of(model, scar_ratio=None), untrained)

    def slowly(convolution: nn.Conv2d, inputs: Tensor, ratio: int, **options: Any) -> Fitted:
        nonlocal now_s
        now_s += 20.0
        if len(fitted) == 3 and now_s < 1000:
            raise KeyboardInterrupt
        fitted.append((convolution.in_channels, ratio))
        return fit(convolution, inputs, ratio, **options)

    monkeypatch.setattr(fits, "fit", slowly)

    def outcome() -> Outcome:
        store = Store(tmp_path, clock=lambda: now_s)
        return replace_layers(model, task_of(model, scar_ratio=None, store=store), untrained)

    with pytest.raises(KeyboardInterrupt):
        outcome()
    now_s = 1000.0
    found = outcome()
    assert sorted(fitted) == [(16, 4), (16, 8), (32, 4), (32, 8)]
    assert all(torch.equal(a, b) for a, b in zip(found.model.parameters(), expected.model.parameters(), strict=True))
    assert found.edits == expected.edits


def test_killed_while_it_trains_it_fits_no_more_layers(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """A layer that there was no time for stays, though the run taken up counts its share of the time anew."""
    monkeypatch.setattr(fits, "AT_ONCE", 1)
    now_s, lines = 0.0, list[str]()

    def say(line: str) -> None:
        nonlocal now_s
        now_s += 30.0
        lines.append(line)

    def kill(student: nn.Module, task: Task, budget: Budget, slot: Slot) -> Trained:
        raise KeyboardInterrupt

    def task() -> Task:
        store = Store(tmp_path, clock=lambda: now_s)
        return task_of(model, budget=Budget(100, lambda: now_s, used_s=now_s), say=say, store=store)

    with pytest.raises(KeyboardInterrupt):
        replace_layers(model, task(), kill)
    assert lines[1:] == ["scar: no time to fit 1 of 2 layers, which save least"]
    lines.clear()
    assert replaced(replace_layers(model, task(), untrained)) == ["wide"]
    assert [line for line in lines if " saves " in line] == []


class Reading(nn.Module):
    """Its code asks a layer for its stride, which a block does not tell."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(16, 32, 3), nn.Conv2d(32, 32, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu()) * self.first.stride[0]


def test_a_layer_that_the_models_own_code_reads_is_left_alone():
    network, x = Reading().eval(), torch.randn(4, 16, 12, 12, generator=torch.Generator().manual_seed(0))
    task = task_of(network, arguments=(x[:1],), train=Data(x, "train", labelled=False))
    assert replaced(replace_layers(network, task, untrained)) == ["second"]


def test_the_edit_gives_the_same_structure_again(model: nn.Module):
    outcome = replace_layers(model, task_of(model), untrained)
    before = torch.get_rng_state()
    again: nn.Module = copy.deepcopy(model)
    for edit in outcome.edits:
        again = edit.apply(again, (images(1),))
    assert torch.equal(torch.get_rng_state(), before)
    again.load_state_dict(outcome.model.state_dict())
    with torch.no_grad():
        assert torch.equal(again(images()), outcome.model(images()))


def test_the_same_seed_gives_the_same_network(model: nn.Module):
    before = torch.get_rng_state()
    states = [replace_layers(model, task_of(model, seed=seed), untrained).model.state_dict() for seed in (3, 3, 4)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not all(torch.equal(states[0][name], states[2][name]) for name in states[0])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("workers", [2, 3])
@pytest.mark.parametrize("axis", ["rows", "columns"])
def test_split_over_workers_the_result_is_exact(model: nn.Module, workers: int, axis: str):
    small, x = replace_layers(model, task_of(model), untrained).model, images(1)
    with torch.inference_mode():
        expected = small(x)
    capture = capture_model(small, x)
    assert not capture.opaque
    found = InProcess(capture, lower(axis_plan(capture.graph, workers, axis), capture.graph))(x)
    assert relative(found, expected) <= TOLERANCE["float32"]
