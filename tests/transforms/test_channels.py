"""Planted dead, equal and constant channels are found, and exactly they go, in every kind of structure."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgedi.transforms.compact import compact
from edgedi.transforms.measure import difference
from tests.transforms.planted import (
    Concat,
    Excited,
    Flattened,
    Halves,
    Padded,
    Residual,
    Shuffled,
    compacted,
    image,
    kill,
    randomised,
    repeat,
    widths,
)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def chain() -> nn.Sequential:
    return randomised(
        nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 10, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(10, 4, 3, padding=1),
        )
    )


def test_nothing_planted_nothing_goes():
    model = chain()
    assert widths(compacted(model, image())) == widths(model)


def test_dead_channels_of_a_chain():
    """Zero weights; a normalisation that scales by zero and shifts below zero; a SiLU of zero."""
    model = chain()
    kill(model[0], [1])
    kill(model[1], [4, 5])
    with torch.no_grad():
        model[1].bias[[1, 4, 5]] = -0.1
        model[1].running_mean[1] = 0
    kill(model[4], [0, 9])
    assert widths(compacted(model, image())) == {"0": (3, 5), "4": (5, 8), "6": (8, 4)}


def test_a_channel_that_only_fed_dead_ones_goes_too():
    model = chain()
    with torch.no_grad():
        model[4].weight[:, 3] = 0
        model[4].weight[5:, 6] = 0
    kill(model[4], range(5))
    assert widths(compacted(model, image())) == {"0": (3, 6), "4": (6, 5), "6": (5, 4)}


def test_a_channel_that_is_never_positive_is_zero_after_relu():
    """Its inputs come from a ReLU, its weights and bias are not positive."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 1)
    ).eval()
    with torch.no_grad():
        model[2].weight[2].abs_().neg_()
        model[2].bias[2] = -0.01
        model[2].weight[3].abs_().neg_()
        model[2].bias[3] = 0.01
    assert widths(compacted(model, image())) == {"0": (3, 8), "2": (8, 5), "4": (5, 4)}


def test_equal_channels_of_a_chain_are_added_up():
    model = chain()
    repeat(model[0], 2, [5, 6])
    repeat(model[1], 2, [5, 6])
    repeat(model[4], 1, [0])
    assert widths(compacted(model, image())) == {"0": (3, 6), "4": (6, 9), "6": (9, 4)}


def test_equal_weights_with_another_normalisation_are_not_equal():
    model = chain()
    repeat(model[0], 2, [5])
    assert widths(compacted(model, image())) == widths(model)


def test_channels_made_of_equal_channels_are_equal():
    """Layer 4's outputs 0 and 1 have the same weights but for inputs 2 and 5, exchanged, and these are equal."""
    model = chain()
    repeat(model[0], 2, [5])
    repeat(model[1], 2, [5])
    with torch.no_grad():
        model[4].weight[1] = model[4].weight[0]
        model[4].weight[1, 2], model[4].weight[1, 5] = model[4].weight[0, 5].clone(), model[4].weight[0, 2].clone()
        model[4].bias[1] = model[4].bias[0]
    assert widths(compacted(model, image())) == {"0": (3, 7), "4": (7, 9), "6": (9, 4)}


def constant(padding: int) -> nn.Sequential:
    """Channel 3 of the first layer is 0.7 everywhere."""
    model = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 3, padding=padding)).eval()
    kill(model[0], [3], 0.7)
    return model


def test_a_constant_goes_into_the_bias_where_nothing_is_padded():
    model = constant(padding=0)
    assert widths(compacted(model, image())) == {"0": (3, 5), "2": (5, 4)}


def test_a_constant_before_zero_padding_stays_for_the_border_sees_the_padding():
    model, x = constant(padding=1), image()
    small = compacted(model, x)
    assert widths(small) == {"0": (3, 6), "2": (6, 4)}
    second = model[2]
    with torch.no_grad():  # what folding it would do: right inside, wrong at the border
        bias = second.bias + 0.7 * second.weight[:, 3].sum((1, 2))
        rest = second.weight.clone()
        rest[:, 3] = 0
        difference = (F.conv2d(model[:2](x), rest, bias, padding=1) - model(x)).abs()
    assert difference[:, :, 1:-1, 1:-1].max() < 1e-6
    assert difference.max() > 0.01


def test_two_equal_constants_before_zero_padding_become_one():
    model = constant(padding=1)
    kill(model[0], [5], 0.7)
    assert widths(compacted(model, image())) == {"0": (3, 5), "2": (5, 4)}


def test_a_residual_sum_loses_what_is_dead_in_both_branches():
    model = randomised(Residual())
    kill(model.stem, [0, 1, 2], -0.5)
    kill(model.outer, [1, 2, 3])
    found = widths(compacted(model, image()))
    assert found == {"stem": (3, 6), "inner": (6, 12), "outer": (12, 6), "head": (6, 5)}


def test_a_channel_dead_in_one_branch_of_a_sum_stays():
    model = randomised(Residual())
    kill(model.outer, [3])
    assert widths(compacted(model, image())) == widths(model)


def test_inside_a_residual_branch():
    model = randomised(Residual())
    kill(model.norm, [2, 7])
    with torch.no_grad():
        model.norm.bias[[2, 7]] = -1
    repeat(model.inner, 0, [4])
    repeat(model.norm, 0, [4])
    assert widths(compacted(model, image())) == {"stem": (3, 8), "inner": (8, 9), "outer": (9, 8), "head": (8, 5)}


def test_equal_channels_of_a_residual_sum():
    model = randomised(Residual())
    repeat(model.stem, 6, [7])
    repeat(model.outer, 6, [7])
    assert widths(compacted(model, image())) == {"stem": (3, 7), "inner": (7, 12), "outer": (12, 7), "head": (7, 5)}


def test_a_concatenation_loses_the_columns_of_either_side():
    model = Concat().eval()
    kill(model.left, [0, 5], -1.0)
    repeat(model.right, 1, [3])
    assert widths(compacted(model, image())) == {"left": (3, 4), "right": (3, 3), "head": (10, 5)}


def depthwise() -> nn.Sequential:
    return randomised(
        nn.Sequential(
            nn.Conv2d(3, 8, 1),
            nn.ReLU6(),
            nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU6(),
            nn.Conv2d(8, 4, 1),
        )
    )


def test_a_channel_that_is_dead_on_either_side_of_a_padded_shortcut_goes():
    """Channel 1 of the stem is channel 3 of the sum; channel 0 of the sum is padded, and stays though it is dead."""
    model = Padded().eval()
    kill(model.stem, [1])
    kill(model.outer, [0, 3])
    small = compacted(model, image())
    assert widths(small) == {"stem": (3, 3), "inner": (3, 6), "outer": (6, 7), "head": (7, 5)}


def test_depthwise_layers_lose_the_channel_before_them_too():
    model = depthwise()
    kill(model[0], [1])
    with torch.no_grad():
        model[3].bias[1] = model[3].running_mean[1] = 0
    kill(model[3], [4, 6])
    with torch.no_grad():
        model[3].bias[[4, 6]] = -0.2
    small = compacted(model, image())
    assert widths(small) == {"0": (3, 5), "2": (5, 5), "5": (5, 4)}
    assert small[2].groups == 5
    assert small[2].weight.shape == (5, 1, 3, 3)


def test_equal_depthwise_channels():
    model = depthwise()
    for layer in (model[0], model[2], model[3]):
        repeat(layer, 3, [0])
    assert widths(compacted(model, image())) == {"0": (3, 7), "2": (7, 7), "5": (7, 4)}


def grouped(multiplier: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 12, 1), nn.ReLU(), nn.Conv2d(12, 12 * multiplier, 3, padding=1, groups=4), nn.ReLU(),
        nn.Conv2d(12 * multiplier, 4, 1),
    ).eval()  # fmt: skip


@pytest.mark.parametrize("multiplier", [1, 2])
def test_a_grouped_convolution_loses_whole_groups(multiplier: int):
    model = grouped(multiplier)
    kill(model[2], [3 * multiplier + k for k in range(3 * multiplier)], -0.1)
    kill(model[2], [0])
    small = compacted(model, image())
    assert widths(small) == {"0": (3, 9), "2": (9, 9 * multiplier), "4": (9 * multiplier, 4)}
    assert small[2].groups == 3


@pytest.mark.parametrize("shuffle", [None, F.channel_shuffle], ids=["view", "operator"])
def test_a_shuffle_loses_the_same_place_in_every_group(shuffle: object):
    model = Shuffled(shuffle=shuffle).eval()
    kill(model.stem, [1, 7, 4])
    assert widths(compacted(model, image())) == {"stem": (3, 10), "head": (10, 5)}


def test_halves_stay_halves():
    """Channels 2 and 8 have the same place in either half; 4 is alone and stays."""
    model = Halves().eval()
    kill(model.stem, [2, 8, 4])
    assert widths(compacted(model, image())) == {"stem": (3, 10), "body": (5, 6), "head": (11, 5)}


def test_squeeze_and_excitation_loses_the_channel_everywhere():
    model = Excited().eval()
    kill(model.stem, [0, 6], -0.2)
    kill(model.down, [3], -0.2)
    assert widths(compacted(model, image())) == {"stem": (3, 6), "down": (6, 3), "up": (3, 6), "head": (6, 5)}


def test_equal_channels_with_equal_excitation():
    model = Excited().eval()
    repeat(model.stem, 1, [2])
    repeat(model.up, 1, [2])
    assert widths(compacted(model, image())) == {"stem": (3, 7), "down": (7, 4), "up": (4, 7), "head": (7, 5)}


def test_equal_channels_with_another_excitation_stay_but_are_summed_once():
    model = Excited().eval()
    repeat(model.stem, 1, [2])
    assert widths(compacted(model, image())) == widths(model)


def test_the_linear_layer_after_a_flatten_loses_exactly_the_channels_columns():
    model = Flattened().eval()
    kill(model.stem, [1, 4], -0.3)
    kill(model.first, [0], -0.3)
    kept = model.first.weight.reshape(10, 6, 16)[1:, [0, 2, 3, 5]].reshape(9, 64).clone()
    small = compacted(model, image())
    assert widths(small) == {"stem": (3, 4), "first": (64, 9), "second": (9, 4)}
    assert torch.equal(small.first.weight, kept)


def test_equal_channels_before_a_flatten():
    model = Flattened().eval()
    repeat(model.stem, 1, [4])
    assert widths(compacted(model, image())) == {"stem": (3, 5), "first": (80, 10), "second": (10, 4)}


def test_one_channel_stays_where_all_are_dead():
    model = chain()
    kill(model[4], range(10))
    assert widths(compacted(model, image())) == {"0": (3, 1), "4": (1, 1), "6": (1, 4)}


def test_the_outputs_of_the_network_stay():
    model = chain()
    kill(model[6], [0, 1])
    repeat(model[6], 2, [3])
    assert widths(compacted(model, image())) == widths(model)


class Fixed(nn.Module):
    """Sizes written into the code: a view that knows how many channels come."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 7, 3)
        self.head = nn.Linear(7 * 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(F.relu(self.body(F.relu(self.stem(x)))), 2)
        return self.head(x.view(-1, 28))


def test_where_a_width_stands_in_the_code_it_stays():
    model = Fixed().eval()
    kill(model.stem, [1])
    kill(model.body, [2, 3])
    small = compacted(model, image())
    assert widths(small) == {"stem": (3, 5), "body": (5, 7), "head": (28, 4)}
    assert small.compaction.steps[0].note.startswith("channels that are reshaped or split were left alone: without")


class Twice(nn.Module):
    """One layer that runs twice, and one whose weights another reads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.again, self.head = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 3)
        self.head.weight = self.again.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.again(F.relu(self.again(F.relu(self.stem(x)))))))


def test_shared_weights_stay():
    model = Twice().eval()
    kill(model.again, [2], -0.1)
    kill(model.stem, [2], -0.1)
    small = compacted(model, image())
    assert widths(small) == widths(model)
    assert small.head.weight is small.again.weight


def test_it_stays_exact_at_other_sizes_and_batches():
    model = chain()
    kill(model[4], [0, 9])
    small = compact(model, image())
    with torch.no_grad():
        for other in (image(size=(31, 17), batch=1), image(size=(9, 40), batch=5)):
            assert difference(small(other), model(other)) < 1e-6
