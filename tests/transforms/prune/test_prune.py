"""The step "prune": what can be made up for goes first, what comes out scores enough, and what is refused."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgedi.errors import CompactionError
from edgedi.transforms.arguments import LIKENESS
from edgedi.transforms.compact import compact
from edgedi.transforms.data import Batch, Data
from edgedi.transforms.measure import answer_of, difference, measured
from edgedi.transforms.prune import path as path_module
from edgedi.transforms.prune import refit as refit_module
from edgedi.transforms.prune.curves import Curve, curve_of
from edgedi.transforms.prune.moments import moments_of
from edgedi.transforms.prune.path import find_path
from edgedi.transforms.prune.prune import narrow_to, prune_step
from edgedi.transforms.score import Score, judge_by_accuracy
from edgedi.transforms.size import Target
from edgedi.transforms.store import EVERY_S, Store
from edgedi.transforms.task import Budget, Outcome, Task
from tests.transforms.planted import Excited, Residual, image, randomised, widths


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def inputs(count: int, *size: int, seed: int = 1) -> Tensor:
    return torch.randn(count, *size, generator=torch.Generator().manual_seed(seed))


class Dependent(nn.Module):
    """Of the stem's 8 channels, two are sums of others wherever its input is: they can go without a trace."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 3)
        with torch.no_grad():
            for tensor in (self.stem.weight, self.stem.bias):
                tensor[3] = 0.5 * tensor[0] - 2 * tensor[6]
                tensor[5] = tensor[1] + tensor[2]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stem(x)).mean((2, 3))


def test_channels_that_others_make_up_for_go_and_the_answer_stays():
    model, x = Dependent().eval(), image()
    macs = measured(model, (x,))[2].macs
    small = compact(model, x, calibration=inputs(64, 3, 13, 11), target={"macs": 0.76}, steps=("prune",))
    assert widths(small) == {"stem": (3, 6), "head": (6, 5)}
    other = inputs(4, 3, 13, 11, seed=2)
    assert difference(answer_of(small, (other,)), answer_of(model, (other,))) <= 2e-3
    assert measured(small, (x,))[2].macs == 0.75 * macs


class Toy(nn.Module):
    """Classes of noise: a network that never was trained, and whose widths are all of use."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 16, 3, 2), nn.ReLU(), nn.Conv2d(16, 12, 3)
        )
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))


def validation(model: nn.Module, count: int = 96) -> list[tuple[Tensor, Tensor]]:
    """Labels that the model itself gives."""
    return [(x, answer_of(model, (x,)).argmax(1)) for x in inputs(count, 3, 9, 9, seed=3).split(32)]


def toy() -> Toy:
    """Its answers differ from input to input, as those of a trained network do."""
    model = Toy().eval()
    answers = answer_of(model, (inputs(256, 3, 9, 9, seed=4),))
    with torch.no_grad():
        scale = 1 / answers.std(0)
        model.head.bias.copy_((model.head.bias - answers.mean(0)) * scale)
        model.head.weight.mul_(scale[:, None])
    return model


def test_the_narrowest_network_that_scores_enough_comes_back():
    model = toy()
    small = compact(
        model, inputs(2, 3, 9, 9), calibration=inputs(128, 3, 9, 9), validate=validation(model), tolerance=0.2
    )
    step = small.compaction.steps[-1]
    tried = [point for point in small.compaction.curve if point.step == "prune"][:-1]
    enough = [point.macs for point in tried if point.score >= 0.8]
    assert step.name == "prune"
    assert step.score.value >= 0.8
    assert step.after.macs == min(enough) < 0.9 * step.before.macs
    assert len(tried) <= 10
    assert any(point.score < 0.8 and point.macs < step.after.macs for point in tried)


def test_a_network_without_a_score_counts_as_too_bad_and_the_others_are_tried():
    """Of a metric that is not a number once a layer has lost four channels."""
    model, said = toy(), list[str]()

    def metric(network: nn.Module, validate: Any) -> float:
        return 1.0 if network.body[0].out_channels >= 9 else float("nan")

    small = compact(
        model, inputs(2, 3, 9, 9), calibration=inputs(64, 3, 9, 9), validate=validation(model), metric=metric,
        steps=("prune",), progress=said.append,
    )  # fmt: skip
    assert 9 <= small.body[0].out_channels < 12
    assert any(line.startswith("a network counts as too bad: metric gave nan") for line in said)
    assert {point.score for point in small.compaction.curve} == {1.0}
    with pytest.raises(ValueError, match=r"^metric gave nan; it must give a finite number"):
        compact(model, inputs(2, 3, 9, 9), validate=validation(model), metric=lambda network, validate: float("nan"))


def test_without_labels_it_answers_as_the_original_does():
    model = toy()
    small = compact(model, inputs(2, 3, 9, 9), calibration=inputs(160, 3, 9, 9))
    step = small.compaction.steps[-1]
    assert step.score.value >= LIKENESS
    assert step.score.count == 40
    assert step.after.macs < step.before.macs


@pytest.mark.parametrize("kind", [Residual, Excited])
def test_other_answers_than_classes(kind: type):
    model = randomised(kind())
    small = compact(model, image(), calibration=inputs(40, 3, 13, 11), target={"macs": 0.8})
    assert small.compaction.steps[-1].after.macs <= 0.8 * measured(model, (image(),))[2].macs
    assert 0.3 < small.compaction.steps[-1].score.value < 1


def test_same_seed_same_result_whatever_the_global_generator_and_the_model_is_untouched():
    model, x = toy(), inputs(2, 3, 9, 9)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    first = compact(model, x, calibration=inputs(32, 3, 9, 9), target={"macs": 0.7}, seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    second = compact(model, x, calibration=inputs(32, 3, 9, 9), target={"macs": 0.7}, seed=5)
    assert widths(first) == widths(second) != widths(model)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_the_fit_halves_the_error_of_the_weights_that_are_left():
    model, x, other = toy(), inputs(2, 3, 9, 9), inputs(64, 3, 9, 9, seed=6)
    path = find_path(model, (x,), [Batch((inputs(128, 3, 9, 9),))], 0, lambda line: None)
    index = next(i for i in range(len(path.widths)) if path.macs(i) <= 0.8 * path.macs(0))
    plain = path.edit(index).apply(copy.deepcopy(model), (x,))
    exact = answer_of(model, (other,))
    errors = [float((answer_of(small, (other,)) - exact).square().mean()) for small in (path.network(index), plain)]
    assert errors[0] < 0.5 * errors[1]
    assert measured(plain, (x,))[2].macs == path.macs(index)


# --- time, and kills --------------------------------------------------------------------------------------------------


@dataclass
class Clock:
    now_s: float = 0.0

    def __call__(self) -> float:
        return self.now_s


class Killed(Exception):
    pass


def task_with(model: nn.Module, clock: Clock, **options: Any) -> Task:
    """To be pruned as far as answers stay as they are on 9 of 10 inputs."""
    data = Data(inputs(96, 3, 9, 9), "calibration", num_arguments=1, labelled=False)
    judge = judge_by_accuracy(Data(validation(model), "validate", num_arguments=1, labelled=True, ordered=True))
    given = {"say": lambda line: None, "budget": Budget(None, clock), "judge": judge, "least_score": 0.9, **options}
    return Task(original=model, arguments=(inputs(2, 3, 9, 9),), calibration=data, **given)


def same(one: Outcome, other: Outcome) -> bool:
    pairs = zip(one.model.state_dict().values(), other.model.state_dict().values(), strict=True)
    return widths(one.model) == widths(other.model) and all(torch.equal(a, b) for a, b in pairs)


def test_groups_that_there_is_no_time_for_are_left_alone_those_with_most_multiplications_come_first():
    model, clock, said = toy(), Clock(), list[str]()

    def say(line: str) -> None:
        said.append(line)
        clock.now_s += 60.0 * ("looked at" in line)

    outcome = prune_step(model, task_with(model, clock, say=say, budget=Budget(100.0, clock)))
    assert said[:2] == [
        "prune: 1 of 3 groups of channels looked at",
        "prune: no time to look at 2 groups, which have the fewest multiplications",
    ]
    assert outcome.left_alone == ("body.2 (no time)", "body.4 (no time)")
    before = widths(model)
    assert [name for name, size in widths(outcome.model).items() if size != before[name]] == ["body.0", "body.2"]


def test_killed_while_moments_are_summed_up_it_goes_on_with_the_next_batch(tmp_path: Path):
    model, clock, runs = toy(), Clock(), list[int]()
    batches = [(part,) for part in inputs(96, 3, 9, 9).split(24)]
    expected = moments_of(model, ["body.2", "head"], batches, 96, 0)

    def reading(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        if len(runs) == 3 and clock.now_s < 1000:
            raise Killed
        runs.append(next(i for i, (batch,) in enumerate(batches) if batch is arguments[0]))
        clock.now_s += EVERY_S / 2

    model.register_forward_pre_hook(reading)
    with pytest.raises(Killed):
        moments_of(model, ["body.2", "head"], batches, 96, 0, Store(tmp_path, clock=clock).slot("moments"))
    clock.now_s = 1000.0
    found = moments_of(model, ["body.2", "head"], batches, 96, 0, Store(tmp_path, clock=clock).slot("moments"))
    assert runs == [0, 1, 2, 2, 3]  # the third was not saved yet
    assert {name: one.count for name, one in found.items()} == {name: one.count for name, one in expected.items()}
    assert all(torch.equal(one.squares, expected[name].squares) for name, one in found.items())
    assert all(torch.equal(one.mean, expected[name].mean) for name, one in found.items())


@pytest.mark.parametrize("killed_at", [2, 3])
def test_killed_while_looking_at_groups_it_goes_on_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_at: int
):
    model, clock = toy(), Clock()
    expected = prune_step(model, task_with(model, clock))
    looked: list[str] = []

    def slowly(*arguments: Any) -> Curve:
        if len(looked) + 1 == killed_at:
            raise Killed
        looked.append(arguments[1].name)
        clock.now_s += EVERY_S
        return curve_of(*arguments)

    monkeypatch.setattr(path_module, "curve_of", slowly)
    with pytest.raises(Killed):
        prune_step(model, task_with(model, clock, store=Store(tmp_path, clock=clock)))
    killed_at = -1
    found = prune_step(model, task_with(model, clock, store=Store(tmp_path, clock=clock)))
    assert len(looked) == len(set(looked)) == 3
    assert same(found, expected)
    assert found.curve == expected.curve


def test_without_any_time_one_group_is_looked_at():
    model, clock, said = toy(), Clock(), list[str]()
    prune_step(model, task_with(model, clock, say=said.append, budget=Budget(10.0, clock, used_s=10.0)))
    assert sum("looked at" in line for line in said) == 1


def test_a_target_is_reached_however_long_it_takes():
    model, clock, said = toy(), Clock(), list[str]()
    macs = measured(model, (inputs(2, 3, 9, 9),))[2].macs // 2
    task = task_with(model, clock, say=said.append, budget=Budget(10.0, clock, used_s=10.0), target=Target(macs=macs))
    assert measured(prune_step(model, task).model, (inputs(2, 3, 9, 9),))[2].macs <= macs
    assert sum("looked at" in line for line in said) == 3


@pytest.mark.parametrize("share", [0.9, 0.5, 0.2])
def test_a_target_of_parameters_gives_the_widest_network_of_the_path_that_has_no_more(
    share: float, monkeypatch: pytest.MonkeyPatch
):
    paths = []

    def kept(*arguments: Any, **options: Any) -> path_module.Path:
        paths.append(find_path(*arguments, **options))
        return paths[0]

    monkeypatch.setattr("edgedi.transforms.prune.prune.find_path", kept)
    model, x = toy(), inputs(2, 3, 9, 9)
    step = compact(
        model, x, calibration=inputs(32, 3, 9, 9), target={"parameters": share}, steps=("prune",)
    ).compaction.steps[0]
    (path,) = paths
    sizes = [measured(path.network(i), (x,))[2] for i in range(len(path.widths))]
    assert [path.size(i) for i in range(len(sizes))] == [replace(one, num_bytes=0) for one in sizes]
    held = [one for one in sizes if one.parameters <= round(share * step.before.parameters)]
    assert step.after == held[0]


def test_both_sorts_of_a_target_are_reached():
    model, x = toy(), inputs(2, 3, 9, 9)
    asked = {"macs": 0.7, "parameters": 0.5}
    step = compact(model, x, calibration=inputs(32, 3, 9, 9), target=asked, steps=("prune",)).compaction.steps[-1]
    assert step.after.macs <= 0.7 * step.before.macs
    assert step.after.parameters <= 0.5 * step.before.parameters
    least = {"macs": 2 / step.before.macs, "parameters": 3 / step.before.parameters}
    with pytest.raises(CompactionError, match=r"target is 2 MACs and 3 parameters, and prune came to [\d,]+ and \d+; "):
        compact(model, x, calibration=inputs(32, 3, 9, 9), target=least, steps=("prune",))


def test_killed_after_its_time_for_looking_it_looks_no_further(tmp_path: Path):
    model, clock, said = toy(), Clock(), list[str]()

    def say(line: str) -> None:
        said.append(line)
        clock.now_s += 300.0 * ("looked at" in line)

    def judge(network: nn.Module) -> Score:
        raise Killed

    def task(used_s: float) -> Task:
        budget = Budget(1000.0, clock, used_s=used_s)
        return task_with(model, clock, say=say, judge=judge, budget=budget, store=Store(tmp_path, clock=clock))

    for used_s, looked in ((0.0, 2), (600.0, 0)):
        said.clear()
        with pytest.raises(Killed):
            prune_step(model, task(used_s))
        assert sum("looked at" in line for line in said) == looked
        assert any("no time to look at 1 groups" in line for line in said)


def test_killed_while_networks_are_judged_it_judges_none_twice(tmp_path: Path):
    model, clock, judged = toy(), Clock(), list[float]()
    expected = prune_step(model, task_with(model, clock))
    judge = task_with(model, clock).judge
    assert judge is not None

    def slowly(network: nn.Module) -> Score:
        if len(judged) == 3 and clock.now_s < 1000:
            raise Killed
        judged.append(judge(network).value)
        clock.now_s += EVERY_S
        return judge(network)

    with pytest.raises(Killed):
        prune_step(model, task_with(model, clock, judge=slowly, store=Store(tmp_path, clock=clock)))
    clock.now_s = 1000.0
    found = prune_step(model, task_with(model, clock, judge=slowly, store=Store(tmp_path, clock=clock)))
    assert len(judged) == len(expected.curve)
    assert same(found, expected)
    assert found.curve == expected.curve


def test_killed_while_layers_are_fitted_it_fits_none_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The third layer of a network is never fitted in the first run."""
    model, clock, fitted = toy(), Clock(), list[tuple[int, ...]]()
    macs = measured(model, (inputs(2, 3, 9, 9),))[2].macs // 2
    expected = prune_step(model, task_with(model, clock, target=Target(macs=macs)))

    def slowly(call: Any, *rest: Any) -> None:
        if len(fitted) == 2 and clock.now_s < 1000:
            raise Killed
        fit(call, *rest)
        fitted.append((call.name, *call.weight.shape))
        clock.now_s += EVERY_S

    fit = refit_module._fit
    monkeypatch.setattr(refit_module, "_fit", slowly)
    with pytest.raises(Killed):
        prune_step(model, task_with(model, clock, target=Target(macs=macs), store=Store(tmp_path, clock=clock)))
    clock.now_s = 1000.0
    found = prune_step(model, task_with(model, clock, target=Target(macs=macs), store=Store(tmp_path, clock=clock)))
    assert len(fitted) == len(set(fitted)) > 3
    assert same(found, expected)


def test_layers_fitted_for_one_network_are_no_other_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A fit that was ended is forgotten where another network is fitted next."""
    model, clock = toy(), Clock()
    whole = measured(model, (inputs(2, 3, 9, 9),))[2].macs
    expected = prune_step(model, task_with(model, clock, target=Target(macs=whole // 3)))
    fit, store = refit_module._fit, Store(tmp_path, clock=clock)

    def until_the_last(call: Any, *rest: Any) -> None:
        fit(call, *rest)
        clock.now_s += EVERY_S
        if clock.now_s > 3 * EVERY_S:
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(refit_module, "_fit", until_the_last)
        with pytest.raises(Killed):
            prune_step(model, task_with(model, clock, target=Target(macs=whole // 2), store=store))
    assert same(prune_step(model, task_with(model, clock, target=Target(macs=whole // 3), store=store)), expected)


def test_narrowing_between_trainings_looks_only_as_long_as_there_is_time():
    model, clock, said = toy(), Clock(), list[str]()
    task = task_with(model, clock, say=said.append, budget=Budget(10.0, clock, used_s=10.0))
    macs = measured(model, (inputs(2, 3, 9, 9),))[2].macs
    assert measured(narrow_to(model, task, round(0.9 * macs)).model, (inputs(2, 3, 9, 9),))[2].macs <= 0.9 * macs
    assert sum("looked at" in line for line in said) == 1


# --- what is refused --------------------------------------------------------------------------------------------------


def refused(model: nn.Module, **options: Any) -> CompactionError:
    with pytest.raises(CompactionError) as raised:
        compact(model, inputs(2, 3, 9, 9), calibration=inputs(32, 3, 9, 9), target={"macs": 0.001}, **options)
    return raised.value


def test_a_target_that_cannot_be_reached_says_what_can():
    model = toy()
    error = refused(model)
    macs, scores = [point.macs for point in error.curve], [point.score for point in error.curve]
    assert macs[0] == macs[1] == measured(model, (inputs(2, 3, 9, 9),))[2].macs  # the original, and simplified
    steps = [(before - after) / (macs[1] - macs[-1]) for before, after in pairwise(macs[1:])]
    assert len(steps) == 5
    assert all(0.1 < step < 0.3 for step in steps)
    assert scores[0] == 1.0 > scores[-1]
    assert measured(error.best, (inputs(2, 3, 9, 9),))[2].macs == macs[-1] == error.best.compaction.steps[-1].after.macs
    shown = ", ".join(f"{point.macs:,} MACs score {point.score:.4g}" for point in error.curve[1:])
    target = round(0.001 * macs[0])
    assert str(error) == f"target is {target:,} MACs, and simplify, prune came to {macs[-1]:,}; {shown}"


def test_without_a_judge_it_gives_the_narrowest_network_alone():
    model = toy()
    with pytest.raises(CompactionError, match="nothing says what that scores") as raised:
        compact(model, inputs(2, 3, 9, 9), train=inputs(32, 3, 9, 9), steps=("prune",), target={"macs": 0.001})
    assert raised.value.curve == ()
    assert widths(raised.value.best) == {"body.0": (3, 1), "body.2": (1, 2), "body.4": (2, 1), "head": (1, 4)}


def test_a_network_that_misses_the_target_is_not_trained():
    lines: list[str] = []
    error = refused(toy(), train=inputs(32, 3, 9, 9), steps=("prune", "recover"), progress=lines.append)
    assert [step.name for step in error.best.compaction.steps] == ["prune"]
    assert [line for line in lines if line.startswith("recover")] == []


def test_a_target_that_blocks_after_it_reach_is_reached(monkeypatch: pytest.MonkeyPatch):
    """Narrowing alone does not, as the layers' own widths are the model's outputs."""
    monkeypatch.setattr("edgedi.transforms.recover.training.STEPS_WITHOUT_BUDGET", 2)
    model, x = nn.Sequential(nn.Conv2d(3, 16, 1), nn.ReLU(), nn.Conv2d(16, 32, 3)).eval(), inputs(16, 3, 9, 9)
    options: dict[str, Any] = {"train": x, "calibration": x, "seed": 1}
    with pytest.raises(CompactionError) as raised:
        compact(model, x[:1], target={"macs": 0.1}, steps=("prune",), **options)
    narrowest = raised.value.best.compaction.steps[-1].after
    share = 0.9 * narrowest.macs / measured(model, (x[:1],))[2].macs
    small = compact(model, x[:1], target={"macs": share}, steps=("prune", "scar"), **options)
    pruned, replaced = small.compaction.steps
    assert pruned.after == narrowest
    assert replaced.after.macs <= 0.9 * narrowest.macs


def test_a_target_that_is_reached_already_takes_no_time():
    model, said = toy(), list[str]()
    small = compact(
        model, inputs(2, 3, 9, 9), calibration=inputs(32, 3, 9, 9), target={"macs": 1.0}, progress=said.append
    )
    assert widths(small) == widths(model)
    assert small.compaction.steps[-1].note == ""
    assert [line for line in said if "looked at" in line] == []


def test_a_model_whose_widths_cannot_change_says_so_and_comes_back_simplified():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)).eval()
    small = compact(model, image(), calibration=inputs(16, 3, 13, 11))
    assert widths(small) == {"0": (3, 4)}
    assert isinstance(small[1], nn.Identity)
    assert small.compaction.steps[-1].note == "no width can change"
    with pytest.raises(CompactionError, match=r"target is 10,692 MACs, and .* came to 21,384; .*; prune: no width can"):
        compact(model, image(), calibration=inputs(16, 3, 13, 11), target={"macs": 0.5})


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"method": "l2"}, ValueError, "method is 'l2'; give 'reconstruct' or 'l1'"),
        ({"method": "l1"}, ValueError, "method='l1' drops filters until validation falls: pass validate=..."),
        ({"target": 0.5}, ValueError, r'target is 0.5; give \{"macs": 0.5\}'),
        ({"target": {}}, ValueError, r'target is \{\}; give \{"macs": 0.5\}'),
        ({"target": {"macs": 0.5, "bytes": 0.5}}, ValueError, r"'bytes': 0.5\}; give .*, \{\"parameters\": 0.1\} for"),
        ({"target": {"macs": 0}}, ValueError, r"target\['macs'\] is 0; give a share"),
        ({"target": {"macs": 0.5, "parameters": True}}, ValueError, r"target\['parameters'\] is True; give a share"),
        ({"target": {"parameters": 1.5}}, ValueError, r"target\['parameters'\] is 1.5; give a share"),
        ({"target": {"macs": 0.5}, "steps": ("simplify",)}, ValueError, "target needs the step 'prune' or 'scar'"),
        ({"steps": ("prune",), "calibration": None}, ValueError, "the step 'prune' needs data: pass calibration=..."),
    ],
)
def test_bad_arguments(arguments: dict, error: type[Exception], text: str):
    with pytest.raises(error, match=text):
        compact(toy(), inputs(2, 3, 9, 9), **{"calibration": inputs(16, 3, 9, 9), **arguments})
