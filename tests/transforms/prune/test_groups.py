"""Which channels go together: every structure and family is cut and still computes what it did without them."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgedi.errors import CompactionError
from edgedi.partition.capture.capture import capture_model
from edgedi.partition.plan.lowering import lower
from edgedi.runtime.execution.reference import InProcess
from edgedi.transforms.compact import compact
from edgedi.transforms.measure import difference
from edgedi.transforms.prune import groups as module
from edgedi.transforms.prune.cut import Group, is_one_to_one, narrow
from edgedi.transforms.prune.followed import followed_groups
from edgedi.transforms.prune.groups import groups_of
from tests.exactness import TOLERANCE
from tests.networks import FAMILIES, ODD_SIZE, TRANSFORMERS, build, noise_for
from tests.plans import axis_plan
from tests.transforms.planted import (
    Concat,
    Excited,
    Flattened,
    Halves,
    Padded,
    Residual,
    Shuffled,
    image,
    randomised,
    widths,
)

SMALLEST = [names[0] for family, names in FAMILIES.items() if family not in TRANSFORMERS]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def cut(model: nn.Module, x: Tensor, share: float) -> tuple[nn.Module, tuple[Group, ...]]:
    """Every group without the last units, so many of them."""
    groups, _ = groups_of(model, (x,))
    removed = {
        group.name: range(group.num_units - max(1, round(share * group.num_units)), group.num_units) for group in groups
    }
    return narrow(removed, groups).apply(copy.deepcopy(model), (x,)), groups


def members(model: nn.Module, x: Tensor) -> dict[str, tuple[int, set[str], set[str]]]:
    """Of each group: units, who makes its channels or hands them on, who reads them."""
    return {
        group.name: (
            group.num_units,
            {part.layer for part in group.parts if not part.reads},
            {part.layer for part in group.readers},
        )
        for group in groups_of(model, (x,))[0]
    }


# --- structures -------------------------------------------------------------------------------------------------------


def test_what_is_added_hangs_together():
    assert members(randomised(Residual()), image()) == {
        "stem": (8, {"stem", "outer"}, {"inner", "head"}),
        "inner": (12, {"inner", "norm"}, {"outer"}),
    }


class Branches(nn.Module):
    """Two of them side by side, the first read once more."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.stem = nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(4, 3, 1), nn.Conv2d(3, 4, 1)
        self.head, self.side = nn.Conv2d(9, 5, 3), nn.Conv2d(6, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        left = F.relu(self.left(x))
        return self.head(torch.cat([left, F.max_pool2d(self.right(x), 3, 1, 1)], 1)) + self.side(left)


def test_branches_side_by_side_do_not_and_their_reader_loses_the_right_columns():
    groups, left_alone = groups_of(Branches().eval(), (image(),))
    assert left_alone == ()
    assert {(group.name, part.layer): part.units.tolist() for group in groups for part in group.readers} == {
        ("left", "head"): [*range(6), -1, -1, -1],
        ("left", "side"): [*range(6)],
        ("right", "head"): [-1] * 6 + [0, 1, 2],
        ("stem", "left"): [0, 1, 2, 3],
        ("stem", "right"): [0, 1, 2, 3],
    }


def test_squeeze_and_excitation():
    assert members(Excited().eval(), image()) == {
        "stem": (8, {"stem", "up"}, {"down", "head"}),
        "down": (4, {"down"}, {"up"}),
    }


def test_depthwise_convolutions_lose_what_feeds_them():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU6(), nn.Conv2d(8, 4, 1)).eval()
    small, (group,) = cut(model, image(), 0.25)
    assert widths(small) == {"0": (3, 6), "1": (6, 6), "3": (6, 4)}
    assert (small[1].groups, group.readers[0].layer) == (6, "3")


def test_each_group_of_a_grouped_convolution_loses_as_many():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 12, 3, groups=2), nn.Conv2d(12, 4, 1)).eval()
    small, groups = cut(model, image(), 0.5)
    assert [(group.name, group.num_units) for group in groups] == [("0", 4), ("2", 6)]
    assert widths(small) == {"0": (3, 4), "2": (4, 6), "3": (6, 4)}
    assert torch.equal(small[2].weight, model[2].weight[[0, 1, 2, 6, 7, 8]][:, :2])


def test_a_linear_layer_after_a_flatten_loses_exactly_the_columns_of_what_went():
    model = Flattened().eval()
    groups, _ = groups_of(model, (image(),))
    small = narrow({"stem": [1, 4], "first": [0]}, groups).apply(copy.deepcopy(model), (image(),))
    columns = model.first.weight.view(10, 6, 16)[:, [0, 2, 3, 5]].reshape(10, 64)
    assert torch.equal(small.first.weight, columns[1:])
    assert torch.equal(small.first.bias, model.first.bias[1:])
    assert torch.equal(small.second.weight, model.second.weight[:, 1:])
    assert widths(small) == {"stem": (3, 4), "first": (64, 9), "second": (9, 4)}


def test_transposed_convolutions():
    model = nn.Sequential(
        nn.ConvTranspose2d(3, 8, 2), nn.ReLU(), nn.ConvTranspose2d(8, 4, 3), nn.Conv2d(4, 2, 1)
    ).eval()
    small, groups = cut(model, image(), 0.5)
    assert {group.name: group.num_units for group in groups} == {"0": 8, "2": 4}
    assert [tuple(small[i].weight.shape) for i in (0, 2, 3)] == [(3, 4, 2, 2), (4, 2, 3, 3), (2, 2, 1, 1)]


class Named(nn.Module):
    """Says how wide it is."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.third(self.second(F.relu(self.first(x)).view(-1, 8, x.shape[2], x.shape[3])))


def test_what_does_not_run_or_compute_the_same_is_left_alone_and_named():
    groups, left_alone = groups_of(Named().eval(), (image(),))
    assert [group.name for group in groups] == ["second"]
    assert left_alone == ("first (narrower, it does not compute the same)",)


def test_beside_the_input_where_torch_pruning_fails():
    """The head reads six channels of the left branch, three of the input, which stay, and four of the right one."""
    model = Concat().eval()
    groups, left_alone = groups_of(model, (image(),))
    assert left_alone == ()
    assert {group.name: group.readers[0].units.tolist() for group in groups} == {
        "left": [0, 1, 2, 3, 4, 5, *[-1] * 7], "right": [*[-1] * 9, 0, 1, 2, 3]
    }  # fmt: skip
    assert widths(cut(model, image(), 0.5)[0]) == {"left": (3, 3), "right": (3, 2), "head": (8, 5)}


def test_halves_stay_halves():
    """Each half of the stem's channels loses as many, at the same places."""
    model = Halves().eval()
    assert members(model, image()) == {"stem": (6, {"stem"}, {"body", "head"}), "body": (6, {"body"}, {"head"})}
    small, _ = cut(model, image(), 0.5)
    assert widths(small) == {"stem": (3, 6), "body": (3, 3), "head": (6, 5)}
    assert torch.equal(small.stem.weight, model.stem.weight[[0, 1, 2, 6, 7, 8]])


def test_a_shuffle_is_followed():
    model = Shuffled().eval()
    (group,), left_alone = groups_of(model, (image(),))
    assert left_alone == ()
    assert [part.units.tolist() for part in group.parts] == [
        [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5], [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    ]  # fmt: skip


def test_a_shortcut_padded_with_channels_is_followed():
    """What is added to padding stays; the rest goes with the stem, through every stage."""
    model = Padded().eval()
    assert members(model, image()) == {
        "stem": (4, {"stem", "outer"}, {"inner", "head"}),
        "inner": (6, {"inner"}, {"outer"}),
    }
    small, groups = cut(model, image(), 0.5)
    (stem,) = (group for group in groups if group.name == "stem")
    assert [part.units.tolist() for part in stem.parts if part.layer == "outer"] == [[-1, -1, 0, 1, 2, 3, -1, -1]]
    assert widths(small) == {"stem": (3, 2), "inner": (2, 3), "outer": (3, 6), "head": (6, 5)}


def test_a_network_that_cannot_be_traced_has_no_groups_to_follow():
    class Looks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if float(x.sum()) > 0 else -x

    assert followed_groups(Looks().eval(), (image(),)) == ()


def test_layer_normalisation_reads_all_channels_at_once():
    model = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 5), nn.GELU(), nn.Linear(5, 2)).eval()
    groups, left_alone = groups_of(model, (torch.randn(3, 6),))
    assert [group.name for group in groups] == ["2"]
    assert left_alone == ("0 (1 reads all of its channels at once)",)


def test_outputs_and_inputs_are_never_in_a_group():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 3, 1), nn.Softmax(1)).eval()
    assert members(model, image()) == {"0": (8, {"0"}, {"2"})}


def test_the_model_is_untouched():
    model = randomised(Residual())
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        small, _ = cut(model, image(), 0.3)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not small.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_without_the_library_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "torch_pruning", None)
    with pytest.raises(CompactionError, match=r"pip install 'edgedi\[compact\]'"):
        groups_of(Residual().eval(), (image(),))


def test_a_group_that_is_wrong_is_found(monkeypatch: pytest.MonkeyPatch):
    """The next channel's columns instead of the channel's own."""
    model, right = Excited().eval(), module._group

    def shifted(*given: object) -> Group | str:
        made = right(*given)  # type: ignore[arg-type]  # handed through
        for part in made.readers:
            part.units[:] = np.roll(part.units, 1)
        return made

    monkeypatch.setattr(module, "_group", shifted)
    whole = {group.name: group.num_units for group in groups_of(model, (image(),))[0]}
    assert whole == {"stem": 8, "down": 4}, "the exact step's own groups take their place"
    monkeypatch.setattr(module, "followed_groups", lambda model, arguments: ())
    groups, left_alone = groups_of(model, (image(),))
    assert groups == ()
    assert "stem (narrower, it does not compute the same)" in left_alone


# --- families ---------------------------------------------------------------------------------------------------------


def narrower(model: nn.Module, groups: tuple[Group, ...]) -> dict[str, tuple[int, int]]:
    """The widths that are left without 30 % of every group's units."""
    expected = {name: list(width) for name, width in widths(model).items()}
    for group in groups:
        gone = range(group.num_units - max(1, round(0.3 * group.num_units)), group.num_units)
        for part in group.parts:
            if part.layer in expected:
                lost = int(np.isin(part.units, gone).sum())
                both = is_one_to_one(model.get_submodule(part.layer))
                for side in (0, 1) if both else (0 if part.reads else 1,):
                    expected[part.layer][side] -= lost
    return {name: (width[0], width[1]) for name, width in expected.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALLEST)
def test_every_family_without_30_percent_of_its_widths_runs_and_is_split(name: str):
    x = noise_for(name, ODD_SIZE)[:1]
    model = compact(build(name, ODD_SIZE), x)
    small, groups = cut(model, x, 0.3)
    assert widths(small) == narrower(model, groups)
    # GoogLeNet's heads for training do not run, and stay as they are.
    assert sum(a * b for a, b in widths(small).values()) < 0.85 * sum(a * b for a, b in widths(model).values())
    capture = capture_model(small, x)
    found = InProcess(capture, lower(axis_plan(capture.graph, 2, "rows"), capture.graph))(x)
    with torch.no_grad():
        assert difference(found, small(x)) <= 10 * TOLERANCE["float32"]
