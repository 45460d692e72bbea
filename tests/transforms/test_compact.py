"""``compact`` itself: what it folds and takes out, what it leaves untouched, what it reports and what it refuses."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import edgedi
from edgedi.errors import CompactionError
from edgedi.partition.capture.capture import capture_model
from edgedi.partition.plan.lowering import lower
from edgedi.runtime.execution.reference import InProcess
from edgedi.transforms.compact import compact
from edgedi.transforms.exact import simplify as module
from edgedi.transforms.measure import difference
from edgedi.transforms.size import LayerSize, Size
from tests.exactness import TOLERANCE, relative
from tests.networks import FAMILIES, ODD_SIZE, TRANSFORMERS, build, noise_for
from tests.plans import axis_plan
from tests.transforms.planted import Excited, Residual, compacted, image, kill, randomised, widths

SMALLEST = [names[0] for family, names in FAMILIES.items() if family not in TRANSFORMERS]

NORMS_LEFT = {"densenet121": 62, "googlenet": 2, "inception_v3": 2}
"""DenseNet normalises before it convolves; the other two have heads that only training runs."""


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def kinds(model: nn.Module) -> list[str]:
    return [type(part).__name__ for part in model.modules() if not next(part.children(), None)]


def normalised() -> nn.Sequential:
    return randomised(
        nn.Sequential(
            nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(6, 4, 3),
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.Sigmoid(), nn.Linear(8, 3),
        )
    )  # fmt: skip


# --- what goes without a channel being planted ------------------------------------------------------------------------


def test_normalisations_go_into_the_layer_before_and_dropouts_go():
    model = normalised()
    assert kinds(compacted(model, image())) == [
        "Conv2d", "Identity", "ReLU", "Identity", "Conv2d", "AdaptiveAvgPool2d", "Flatten", "Linear", "Identity",
        "Sigmoid", "Linear",
    ]  # fmt: skip


def test_the_folded_weights_are_scale_times_weight():
    model = normalised()
    small, norm = compact(model, image()), model[1]
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    shift = norm.bias.double() - norm.running_mean.double() * scale
    assert torch.equal(small[0].weight, (model[0].weight.double() * scale[:, None, None, None]).float())
    assert torch.equal(small[0].bias, shift.float())


class Branching(nn.Module):
    """A normalisation before its convolution, as DenseNet has it, and one whose convolution is read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.other = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.BatchNorm2d(6)
        self.second = nn.Conv2d(6, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.second(F.relu(self.norm(x))) + self.second.bias.sum() + self.other(x)[:, :4]


def test_normalisations_that_cannot_be_folded_stay():
    model = randomised(Branching())
    assert kinds(compacted(model, image())) == ["Conv2d", "BatchNorm2d", "BatchNorm2d", "Conv2d"]


def test_layers_that_hand_their_input_on_go():
    depthwise, dense = nn.Conv2d(6, 6, 1, groups=6), nn.Conv2d(6, 6, 1, bias=False)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.BatchNorm2d(6, eps=0), depthwise, dense, nn.Conv2d(6, 6, 1, groups=3)
    )
    with torch.no_grad():
        depthwise.weight.fill_(1)
        depthwise.bias.zero_()
        dense.weight.copy_(torch.eye(6)[:, :, None, None])
    model.eval()
    assert kinds(compacted(model, image())) == ["Conv2d", "ReLU", "Identity", "Identity", "Identity", "Conv2d"]
    with torch.no_grad():
        depthwise.bias[0] = 0.1
        dense.weight[0, 1] = 0.1
        model[2].running_mean[0] = 0.1
    assert kinds(compacted(model, image())) == ["Conv2d", "ReLU", "BatchNorm2d", "Conv2d", "Conv2d", "Conv2d"]


class Padding(nn.Conv2d):
    """A convolution with more padding after than before, as networks from TensorFlow have it."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (0, 1, 0, 1)), self.weight, self.bias, self.stride, 0, 1, self.groups)


def test_a_class_of_ones_own_is_folded_and_narrowed_but_never_left_out():
    model = randomised(nn.Sequential(Padding(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), Padding(6, 6, 1)))
    kill(model[1], [2], -0.1)
    small = compacted(model, image())
    assert kinds(small) == ["Padding", "Identity", "ReLU", "Padding"]
    assert widths(small) == {"0": (3, 5), "3": (5, 6)}
    with torch.no_grad():
        model[3].weight.copy_(torch.eye(6)[:, :, None, None])
        model[3].bias.zero_()
    assert kinds(compacted(model, image())) == ["Padding", "Identity", "ReLU", "Padding"]


def test_half_of_a_strided_identity_would_be_missing():
    strided = nn.Conv2d(4, 4, 1, stride=2, groups=4, bias=False)
    nn.init.ones_(strided.weight)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), strided, nn.Conv2d(4, 4, 3)).eval()
    assert kinds(compacted(model, image())) == ["Conv2d", "Conv2d", "Conv2d"]


# --- what holds of every result ---------------------------------------------------------------------------------------


def test_the_model_given_is_untouched():
    model = randomised(Residual())
    kill(model.stem, [0], -0.5)
    kill(model.outer, [0])
    before, parts = copy.deepcopy(model.state_dict()), kinds(model)
    small = compact(model, image())
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert kinds(model) == parts
    assert not hasattr(model, "compaction")
    assert not {id(p) for p in model.parameters()} & {id(p) for p in small.parameters()}


def test_the_result_is_of_the_same_class_and_can_be_compacted_again_saved_and_trained():
    model = randomised(Residual())
    kill(model.norm, [2, 7], -1.0)
    small = compact(model, image())
    assert type(small) is Residual
    assert not small.training
    again = compact(small, image())
    assert widths(again) == widths(small)
    assert not any(layer.changed for layer in again.compaction.layers)
    small.train()(image()).sum().backward()
    assert all(parameter.grad is not None for parameter in small.parameters())


@pytest.mark.parametrize("workers", [2, 3])
def test_it_is_captured_and_split_over_workers(workers: int):
    model, x = Excited().eval(), image(batch=1)
    kill(model.stem, [0, 6], -0.2)
    small = edgedi.compact(model, x)
    with torch.inference_mode():
        expected = model(x)
    capture = capture_model(small, x)
    assert not capture.opaque
    found = InProcess(capture, lower(axis_plan(capture.graph, workers, "rows"), capture.graph))(x)
    assert relative(found, expected) <= TOLERANCE["float32"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions(dtype: torch.dtype):
    model, x = Excited().eval().to(dtype), image().to(dtype)
    kill(model.stem, [0, 6], -0.2)
    small = compact(model, x)
    assert widths(small)["up"] == (4, 6)
    assert {parameter.dtype for parameter in small.parameters()} == {dtype}


@pytest.mark.parametrize("name", SMALLEST)
def test_every_family(name: str):
    """In float64, where there is no rounding to hide in, then in float32: 1e-5, or what rounding does to the model."""
    x = noise_for(name, ODD_SIZE)
    model = build(name, ODD_SIZE).double()
    small = compact(model, x.double())
    with torch.no_grad():
        exact = model(x.double())
        assert difference(small(x.double()), exact) <= 1e-11
        single = [as_double(network.float()(x)) for network in (small, model)]
    assert difference(single[0], exact) <= max(1e-5, 1.5 * difference(single[1], exact))
    assert sum(isinstance(part, nn.BatchNorm2d) for part in small.modules()) == NORMS_LEFT.get(name, 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALLEST)
def test_every_family_is_captured_and_split(name: str):
    model, x = build(name, ODD_SIZE), noise_for(name, ODD_SIZE)
    capture = capture_model(compact(model, x), x)
    found = InProcess(capture, lower(axis_plan(capture.graph, 2, "rows"), capture.graph))(x)
    with torch.no_grad():
        own = as_double(model(x))
        exact = model.double()(x.double())
    assert difference(as_double(found), exact) <= max(TOLERANCE["float32"], 3 * difference(own, exact))


def as_double(answer: Tensor | dict[str, Tensor]) -> Tensor | dict[str, Tensor]:
    return {key: value.double() for key, value in answer.items()} if isinstance(answer, dict) else answer.double()


# --- the report -------------------------------------------------------------------------------------------------------


def planted() -> nn.Sequential:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    kill(model[1], [0, 1, 2], -1.0)
    return model


def test_the_report_counts_parameters_macs_and_bytes():
    report = compact(planted(), image(size=(10, 10), batch=1)).compaction
    (step,) = report.steps
    assert step.name == "simplify"
    assert step.before == Size(parameters=216 + 16 + 36, macs=64 * (216 + 32), num_bytes=4 * (268 + 16) + 8)
    assert step.after == Size(parameters=140 + 24, macs=64 * (135 + 20), num_bytes=4 * 164)
    assert 0 <= step.difference <= 1e-6
    assert report.difference == step.difference
    first, norm, last = report.layers
    assert first.before == LayerSize(
        name="0", kind="Conv2d", width="3 -> 8", size=Size(parameters=216, macs=13_824, num_bytes=864)
    )
    assert first.after == LayerSize(
        name="0", kind="Conv2d", width="3 -> 5", size=Size(parameters=140, macs=8_640, num_bytes=560)
    )
    assert norm.after is None
    assert (last.before.width, last.after.width) == ("8 -> 4", "5 -> 4")


def test_the_report_prints_as_a_table():
    small = compact(nn.Sequential(*planted(), nn.Conv2d(4, 4, 3)).eval(), image(size=(10, 10), batch=1))
    lines = [line.split("  ") for line in str(small.compaction).splitlines()]
    assert [cell.strip() for cell in lines[0] if cell] == ["step or layer", "width", "parameters", "MACs", "bytes"]
    assert [cell.strip() for cell in lines[2] if cell] == [
        "0", "3 -> 8: 3 -> 5", "216 -> 140", "13,824 -> 8,640", "864 -> 560",
    ]  # fmt: skip
    assert [cell.strip() for cell in lines[3] if cell] == ["1", "8", "16 -> 0", "0", "136 -> 0", "gone"]
    assert lines[-1] == ["layers as they were: 1"]


def test_the_report_cannot_be_changed():
    report = compact(planted(), image()).compaction
    with pytest.raises(AttributeError):
        report.steps = ()


def test_progress_is_a_line_for_each_step(capsys: pytest.CaptureFixture[str]):
    lines: list[str] = []
    compact(planted(), image(size=(10, 10), batch=1), progress=lines.append)
    assert lines == ["simplify: 268 -> 164 parameters, 15,872 -> 9,920 MACs"]
    compact(planted(), image(size=(10, 10), batch=1), progress=True)
    assert capsys.readouterr().err == f"edgedi: {lines[0]}\n"


# --- what is refused --------------------------------------------------------------------------------------------------


def test_training_mode_is_refused_by_name():
    model = planted()
    model[2].train()
    with pytest.raises(ValueError, match=r"in training mode: 2; call model.eval\(\) first"):
        compact(model, image())


def test_what_is_no_model_and_what_is_no_input():
    with pytest.raises(TypeError, match=r"model is a int; give a torch.nn.Module"):
        compact(3, image())
    with pytest.raises(TypeError, match="example_inputs hold no tensor"):
        compact(planted(), (1, 2))
    with pytest.raises(ValueError, match=r"the model refuses example_inputs: RuntimeError: .*channels"):
        compact(planted(), image(channels=5))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_an_example_by_which_nothing_could_be_compared(value: float):
    """Everything differs nowhere where both answers are not a number."""
    broken = image()
    broken[0, 0, 0, 0] = value
    with pytest.raises(ValueError, match=r"^example_inputs holds NaN or infinity, .*; give finite numbers$"):
        compact(planted(), broken)
    with pytest.raises(ValueError, match=r"^example_inputs\[1\] holds NaN or infinity"):
        compact(planted(), (image(), broken))
    model = planted()
    with torch.no_grad():
        model[3].bias[1] = value
    with pytest.raises(ValueError, match=r"answer to example_inputs holds NaN or infinity, .* its weights"):
        compact(model, image())


def test_steps_that_do_not_exist():
    with pytest.raises(ValueError, match="steps hold 'shrink', 'fold'; there is 'simplify'"):
        compact(planted(), image(), steps=("simplify", "shrink", "fold"))
    with pytest.raises(TypeError, match=r"steps is the string 'simplify'; give a tuple"):
        compact(planted(), image(), steps="simplify")


def test_no_steps_make_a_plain_copy():
    model = planted()
    small = compact(model, image(), steps=())
    assert small is not model
    assert widths(small) == widths(model)
    assert small.compaction.steps == ()
    assert small.compaction.difference == 0.0


class Choosing(nn.Module):
    """Its way through the code hangs on values."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) if x.sum() > 0 else x


def test_a_model_that_cannot_be_traced_says_what_to_do():
    with pytest.raises(CompactionError, match=r"Choosing cannot be traced by torch.export .*depend on shapes only"):
        compact(Choosing().eval(), image().abs())


class Reading(nn.Module):
    """Its answer depends on how wide a layer is."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(F.relu(self.norm(self.first(x)))) * self.first.out_channels


class Wasting(nn.Module):
    """A layer whose output nobody reads: it runs, and the exported graph does not show it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.second, self.unread = nn.Conv2d(6, 4, 3), nn.Conv2d(6, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.first(x)))
        return [self.second(x), self.unread(x)][0]


@pytest.mark.parametrize(
    ("kind", "reason"),
    [(Reading, "its answer differs by 1.7e-01 of the largest value"), (Wasting, "it fails with RuntimeError")],
)
def test_where_a_smaller_layer_would_not_do_widths_are_kept_and_the_report_says_why(kind: type, reason: str):
    model = randomised(kind())
    kill(model.norm, [2], -0.1)
    lines: list[str] = []
    small = compact(model, image(), progress=lines.append)
    assert widths(small) == widths(model)
    assert isinstance(small.norm, nn.Identity)
    expected = f"simplify: channels were left alone: without some of them {reason}"
    assert str(small.compaction).splitlines()[-1].startswith(expected)
    assert lines[1].startswith(expected)


class Weighing(nn.Module):
    """Its answer depends on a weight that folding changes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.first(x)) * float(self.first.stride[0] + isinstance(self.norm, nn.Identity))


def test_a_result_that_differs_is_not_returned():
    with pytest.raises(CompactionError, match=r"Weighing made smaller is not the same.* differs by 1\.0e\+00"):
        compact(randomised(Weighing()), image())


def test_the_comparison_finds_a_wrong_step(monkeypatch: pytest.MonkeyPatch):
    """A step that changes one weight of a hundred and more."""

    def spoil(model: nn.Module, arguments: tuple[Tensor, ...], how: str) -> None:
        with torch.no_grad():
            model[3].weight[0, 0] += 0.05

    monkeypatch.setattr(module, "_simplify_in_place", spoil)
    with pytest.raises(CompactionError, match="differs by"):
        compact(randomised(planted()), image())
