"""Layers that add to a shortcut: which they are, and that they are fitted to what the shortcut leaves missing."""

from __future__ import annotations

import copy

import pytest
import torch
import torchvision
from torch import Tensor, nn

from edgedi.transforms.exact.simplify import simplify_step
from edgedi.transforms.prune import refit
from edgedi.transforms.prune.cut import Cut, Narrow
from edgedi.transforms.prune.refit import Teacher, samples_to_fit
from edgedi.transforms.prune.sums import Shortcut, shortcuts_of
from edgedi.transforms.task import Budget, Task


class Block(nn.Module):
    """``kind`` says how the outputs of the second convolution and of the first are used."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind = kind
        self.stem, self.hidden = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 8, 3, padding=1)
        self.first, self.second = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.side = nn.Conv2d(8, 8, 1)
        self.last = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.hidden(self.stem(x).relu()).relu()
        y = self.second(self.first(x).relu())
        return self.last(getattr(self, f"_{self.kind}")(x, y).relu())

    def _plus(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y

    def _in_place(self, x: Tensor, y: Tensor) -> Tensor:
        y += x
        return y.relu_()

    def _side(self, x: Tensor, y: Tensor) -> Tensor:
        return y + self.side(x)

    def _weighted(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.add(x, y, alpha=2)

    def _broadcast(self, x: Tensor, y: Tensor) -> Tensor:
        return y + x.mean((2, 3), keepdim=True)

    def _twice(self, x: Tensor, y: Tensor) -> Tensor:
        return (x + y) * y

    def _own(self, x: Tensor, y: Tensor) -> Tensor:
        y = y.relu()
        return y + self.side(y)

    def _doubled(self, x: Tensor, y: Tensor) -> Tensor:
        return y + y

    def _changed(self, x: Tensor, y: Tensor) -> Tensor:
        return y + x.sigmoid()


def inputs(count: int) -> Tensor:
    return torch.randn(count, 3, 11, 9, generator=torch.Generator().manual_seed(count))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("plus", {"second": Shortcut("first", True)}),
        ("in_place", {"second": Shortcut("first", True)}),
        ("side", {"side": Shortcut("second", False)}),
        ("own", {"side": Shortcut("side", True)}),
        *[(kind, {}) for kind in ("weighted", "broadcast", "twice", "doubled", "changed")],
    ],
)
def test_a_layer_whose_output_is_only_added_to_what_is_known(kind: str, expected: dict[str, Shortcut]) -> None:
    assert shortcuts_of(Block(kind).eval(), (inputs(1),)) == expected


def test_residual_networks_have_one_for_each_block() -> None:
    x = torch.randn(1, 3, 64, 64)

    def found(model: nn.Module) -> dict[str, Shortcut]:
        task = Task(original=model, arguments=(x,), say=lambda line: None, budget=Budget(None))
        return dict(shortcuts_of(simplify_step(model, task).model, (x,)))

    resnet = found(torchvision.models.resnet18(weights=None).eval())
    assert resnet["layer1.1.conv2"] == Shortcut("layer1.1.conv1", True)
    assert resnet["layer3.0.downsample.0"] == Shortcut("layer3.0.conv2", False)
    assert len(resnet) == 8
    mobilenet = found(torchvision.models.mobilenet_v2(weights=None).eval())
    assert mobilenet["features.3.conv.2"] == Shortcut("features.2.conv.2", False)  # read as it was made
    assert len(mobilenet) == 10


def test_a_model_that_does_not_export_has_none() -> None:
    class ByValue(Block):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x if bool(x.sum() > 0) else -x)

    assert shortcuts_of(ByValue("plus").eval(), (inputs(1),)) == {}


# --- fits -------------------------------------------------------------------------------------------------------------

EDIT = Narrow((Cut("stem", outputs=(1, 4, 7, 9)), Cut("hidden", inputs=(1, 4, 7, 9))))
"""The layer before the block reads fewer channels, so that the shortcut is not the original's."""


def maps_of(model: nn.Module, name: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """What a layer reads and makes."""
    seen: list[tuple[Tensor, Tensor]] = []
    hook = model.get_submodule(name).register_forward_hook(lambda _, given, made: seen.append((given[0], made.clone())))
    with torch.no_grad():
        model(x)
    hook.remove()
    return seen[0]


def fitted(kind: str, x: Tensor) -> tuple[nn.Module, nn.Module]:
    original = Block(kind).eval()
    small = EDIT.apply(copy.deepcopy(original), (x,))
    Teacher(original, (x,), 0).fit(small, EDIT)
    return original, small


@pytest.mark.parametrize(("kind", "layer", "shortcut"), [
    ("plus", "second", ("first", 0)), ("in_place", "second", ("first", 0)), ("side", "side", ("second", 1)),
    ("own", "side", ("side", 0)),
])  # fmt: skip
def test_it_is_fitted_to_what_is_missing_of_the_sum(kind: str, layer: str, shortcut: tuple[str, int]) -> None:
    """As least squares of all positions have it: what is left of the sum's error is as little as can be."""
    x = inputs(40)
    original, small = fitted(kind, x)
    name, which = shortcut
    left = maps_of(original, layer, x)[1] + maps_of(original, name, x)[which]
    left = left - maps_of(small, layer, x)[1] - maps_of(small, name, x)[which]
    read = maps_of(small, layer, x)[0]
    patches = nn.functional.unfold(read, 3, padding=1) if layer == "second" else read.flatten(2)
    patches, errors = patches.transpose(1, 2).flatten(0, 1), left.flatten(2).transpose(1, 2).flatten(0, 1)
    patches = torch.cat([patches, torch.ones(len(patches), 1)], 1)
    least = errors - patches @ torch.linalg.lstsq(patches, errors).solution
    assert float(errors.mean(0).abs().max()) <= 1e-5
    assert float(errors.square().sum()) <= 1.001 * float(least.square().sum())


def test_the_sum_is_nearer_than_without(monkeypatch: pytest.MonkeyPatch) -> None:
    x = inputs(40)

    def off() -> float:
        original, small = fitted("plus", x)
        return float((maps_of(small, "last", x)[0] - maps_of(original, "last", x)[0]).square().sum())

    with_shortcuts = off()
    monkeypatch.setattr(refit, "shortcuts_of", lambda model, arguments: {})
    assert with_shortcuts < 0.98 * off()


def test_sums_of_half_precision_are_taken_in_full() -> None:
    """A shortcut many times the branch: of their sum, bfloat16 keeps few digits of what is to be fitted."""
    x = inputs(40).bfloat16()
    original = Block("plus").eval()
    with torch.no_grad():
        original.hidden.bias += 100.0
        original.first.bias -= 100.0 * original.first.weight.sum((1, 2, 3))
    original = original.bfloat16()
    teacher = Teacher(original, (x,), 0)
    call_sums = teacher.outputs["second"]
    branch, shortcut = maps_of(original, "second", x)[1], maps_of(original, "first", x)[0]
    expected = (branch.float() + shortcut.float()).flatten(2).transpose(1, 2).flatten(0, 1)
    assert call_sums.dtype == torch.float32
    assert torch.equal(call_sums, expected)
    assert not torch.equal(call_sums, (branch + shortcut).float().flatten(2).transpose(1, 2).flatten(0, 1))


def test_no_shortcut_is_kept_longer_than_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[refit._Aside] = []

    class Seen(refit._Aside):
        def __init__(self, shortcuts: dict[str, Shortcut]) -> None:
            super().__init__(shortcuts)
            made.append(self)

    monkeypatch.setattr(refit, "_Aside", Seen)
    fitted("plus", inputs(8))
    fitted("own", inputs(8))
    assert [aside._kept for aside in made] == [{}, {}, {}, {}]


@pytest.mark.parametrize(
    ("groups", "columns", "samples"),
    [
        (1, 64, 16_384),  # the least
        (1, 2_304, 8 * 2_304),
        (1, 4_608, 2**26 // 4_608),  # as many as memory allows
        (960, 9, 2**26 // (960 * 9)),  # depthwise: each group has its own columns
        (1, 9_216, 2 * 9_216),
    ],
)
def test_a_layer_is_seen_on_several_samples_to_fit_each_column(groups: int, columns: int, samples: int) -> None:
    assert samples_to_fit(groups, columns) == samples
