"""A network saved and loaded: the same values, split as well; a file that is not as it was is refused by name."""

from __future__ import annotations

import json
import os
import pickle
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

import edgedi
from edgedi.errors import CompactionError
from edgedi.partition.capture.capture import capture_model
from edgedi.partition.plan.lowering import lower
from edgedi.runtime.execution.reference import InProcess
from edgedi.transforms.measure import difference
from edgedi.transforms.saved.exporting import export
from edgedi.transforms.saved.folder import EXPORTED, PAGE, PROGRAM, REPORT, WEIGHTS
from edgedi.transforms.saved.network import SavedNetwork
from tests.exactness import TOLERANCE, relative
from tests.networks import FAMILIES, ODD_SIZE, TRANSFORMERS, build, noise_for
from tests.plans import axis_plan
from tests.transforms.planted import Excited, image, kill, randomised

SMALLEST = [names[0] for family, names in FAMILIES.items() if family not in TRANSFORMERS]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def small() -> nn.Module:
    """A network that ``compact`` gave, of inputs [1, 3, 12, 12]."""
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 5),
    )  # fmt: skip
    randomised(model)
    kill(model[1], [2], -0.1)
    return edgedi.compact(model, x())


def x() -> Tensor:
    return image(size=(12, 12), batch=1)


def saved(model: nn.Module, folder: Path, inputs: Any) -> nn.Module:
    edgedi.save(model, folder, inputs)
    return edgedi.load(folder)


def same(found: Any, expected: Any) -> bool:
    return difference(found, expected) == 0.0


# --- there and back ---------------------------------------------------------------------------------------------------


def test_the_folder_holds_a_program_weights_and_the_report(small: nn.Module, tmp_path: Path):
    edgedi.save(small, tmp_path / "deep" / "small", x())
    names = {path.name for path in (tmp_path / "deep" / "small").iterdir()}
    assert names == {PROGRAM, WEIGHTS, EXPORTED, REPORT, PAGE}
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["small"]
    weights = load_file(tmp_path / "deep" / "small" / WEIGHTS)
    assert weights.keys() == small.state_dict().keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in small.state_dict().items())


def test_a_loaded_network_gives_the_same_values_and_has_the_same_parameters(small: nn.Module, tmp_path: Path):
    again = saved(small, tmp_path / "small", x())
    assert same(again(x()), small(x()))
    other = torch.randn(1, 3, 12, 12)
    assert same(again(other), small(other))
    assert {name: p.shape for name, p in again.named_parameters()} == {
        name: p.shape for name, p in small.named_parameters()
    }
    assert not any(part.training for part in again.modules())
    again(x()).sum().backward()
    assert all(parameter.grad is not None for parameter in again.parameters())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions(dtype: torch.dtype, tmp_path: Path):
    model, inputs = Excited().eval().to(dtype), image().to(dtype)
    again = saved(model, tmp_path / "s", inputs)
    assert same(again(inputs), model(inputs))
    assert {parameter.dtype for parameter in again.parameters()} == {dtype}


class Nested(nn.Module):
    """Structures in and out, buffers, a constant, a number among the arguments, numbers that JSON lacks."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.register_buffer("shift", torch.arange(4.0).reshape(1, 4, 1, 1))
        self.register_buffer("hidden", torch.tensor(0.5), persistent=False)

    def forward(self, pair: tuple[Tensor, dict[str, Tensor]], scale: float) -> dict[str, Any]:
        x, named = pair
        y = self.first(x) * scale + self.shift * self.hidden + named["add"]
        masked = y.masked_fill(y < 0, float("-inf"))
        halves = list(y.split(2, 1))
        return {"map": masked, "halves": halves, "pair": (y.amax((2, 3)), torch.tensor([1, 2])), "three": 3}


def test_structures_numbers_buffers_and_constants_come_back(tmp_path: Path):
    model = Nested().eval()
    inputs = ((image(batch=2), {"add": torch.ones(1, 4, 1, 1)}), 2.0)
    again = saved(model, tmp_path / "s", inputs)
    with torch.no_grad():
        found, expected = again(*inputs), model(*inputs)
    assert same(found, expected)
    assert type(found["halves"]) is list
    assert type(found["pair"]) is tuple
    assert found["three"] == 3
    assert [name for name, _ in again.named_parameters()] == ["first.weight", "first.bias"]
    assert torch.equal(dict(again.named_buffers())["shift"], model.shift)
    with pytest.raises(ValueError, match="inputs are structured"):
        again(inputs[0], 3.0)


class Ordered(nn.Module):
    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        return OrderedDict(out=F.relu(x))


class Named(NamedTuple):
    out: Tensor


class NamedOutput(nn.Module):
    def forward(self, x: Tensor) -> Named:
        return Named(F.relu(x))


def test_an_ordered_dictionary_comes_back_and_a_class_of_ones_own_is_refused(tmp_path: Path):
    found = saved(nn.Sequential(nn.Conv2d(3, 2, 1), Ordered()).eval(), tmp_path / "s", x())(x())
    assert type(found) is OrderedDict
    assert list(found) == ["out"]
    with pytest.raises(CompactionError, match=r"a Named is neither tensor, tuple, list nor .* \(layer output\)"):
        edgedi.save(NamedOutput().eval(), tmp_path / "t", x())


@pytest.mark.parametrize("name", ["alexnet", "squeezenet1_1"])
def test_some_families(name: str, tmp_path: Path):
    check_family(name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALLEST)
def test_every_family(name: str, tmp_path: Path):
    check_family(name, tmp_path)


def check_family(name: str, tmp_path: Path) -> None:
    model, inputs = build(name, ODD_SIZE), noise_for(name, ODD_SIZE)
    again = saved(model, tmp_path / "s", inputs)
    with torch.no_grad():
        assert same(again(inputs), model(inputs))


@pytest.mark.parametrize("workers", [2, 3])
def test_a_loaded_network_is_captured_and_split_over_workers(workers: int, tmp_path: Path):
    model, inputs = Excited().eval(), image(batch=1)
    again = saved(edgedi.compact(model, inputs), tmp_path / "s", inputs)
    capture, own = capture_model(again, inputs), capture_model(model, inputs)
    assert not capture.opaque
    assert [layer.op for layer in capture.graph.layers] == [layer.op for layer in own.graph.layers]
    found = InProcess(capture, lower(axis_plan(capture.graph, workers, "rows"), capture.graph))(inputs)
    with torch.inference_mode():
        assert relative(found, model(inputs)) <= TOLERANCE["float32"]


def test_the_exported_program_is_torchs_own(small: nn.Module, tmp_path: Path):
    edgedi.save(small, tmp_path / "s", x())
    assert same(torch.export.load(tmp_path / "s" / EXPORTED).module()(x()), small(x()))


def test_a_loaded_network_is_saved_again(small: nn.Module, tmp_path: Path):
    again = saved(saved(small, tmp_path / "one", x()), tmp_path / "two", x())
    assert same(again(x()), small(x()))
    assert {path.name for path in (tmp_path / "two").iterdir()} == {PROGRAM, WEIGHTS, EXPORTED}


# --- what a user gets wrong -------------------------------------------------------------------------------------------


def test_inputs_of_another_shape_say_which_is_taken(small: nn.Module, tmp_path: Path):
    again = saved(small, tmp_path / "s", x())
    with pytest.raises(ValueError, match=r"input 0 is 2x3x12x12 of float32, the network was saved for 1x3x12x12 of"):
        again(image(size=(12, 12), batch=2))
    with pytest.raises(ValueError, match="inputs are structured"):
        again(x(), x())


def test_a_folder_with_something_in_it_is_left_alone_unless_asked(small: nn.Module, tmp_path: Path):
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"is not empty; give another folder, or overwrite=True"):
        edgedi.save(small, tmp_path, x())
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]
    edgedi.save(small, tmp_path, x(), overwrite=True)
    edgedi.save(nn.Sequential(nn.Conv2d(3, 2, 1)).eval(), tmp_path, x(), overwrite=True)
    assert {path.name for path in tmp_path.iterdir()} == {"note.txt", PROGRAM, WEIGHTS, EXPORTED}
    assert edgedi.load(tmp_path)(x()).shape == (1, 2, 12, 12)
    with pytest.raises(ValueError, match=r"note.txt is a file; give a folder"):
        edgedi.save(small, tmp_path / "note.txt", x(), overwrite=True)


@pytest.mark.parametrize("put", [0, 1, 2])
def test_killed_while_files_are_put_there_it_is_the_old_network_or_none(
    put: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    old, new = (nn.Sequential(nn.Conv2d(3, 2, 1)).eval() for _ in range(2))
    edgedi.save(old, tmp_path / "s", x())
    left, into_place = iter(range(put)), Path.replace

    def replace_some(path: Path, target: Path) -> Path:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return into_place(path, target)

    monkeypatch.setattr(Path, "replace", replace_some)
    with pytest.raises(KeyboardInterrupt):
        edgedi.save(new, tmp_path / "s", x(), overwrite=True)
    if put < 2:  # the program is the second file, its weights are the last
        assert torch.equal(edgedi.load(tmp_path / "s")(x()), old(x()))
    else:
        with pytest.raises(ValueError, match=r"it does not hold the weights that program\.json was saved with"):
            edgedi.load(tmp_path / "s")


class Random(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand_like(x)


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return x * self.count


class Foreign(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cond(x.shape[0] > 3, torch.sin, torch.cos, (x,)) + torch.ops.saved_tests.twice(x)


torch.library.define("saved_tests::twice", "(Tensor x) -> Tensor")
torch.library.impl("saved_tests::twice", "CompositeExplicitAutograd", lambda x: 2 * x)
torch.library.register_fake("saved_tests::twice", torch.empty_like)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (Random(), "differs by .* Does its forward draw random numbers"),
        (Counting(), "Counting changes count while it runs"),
        (Foreign(), r"operator saved_tests.twice.default is none that a saved network may have \(layer twice"),
    ],
)
def test_what_cannot_be_saved_says_why_and_leaves_no_folder(model: nn.Module, words: str, tmp_path: Path):
    with pytest.raises(CompactionError, match=words):
        edgedi.save(model.eval(), tmp_path / "s", x())
    assert list(tmp_path.iterdir()) == []


def test_a_model_in_training_mode_and_a_device_that_is_no_cpu(tmp_path: Path):
    with pytest.raises(ValueError, match="in training mode"):
        edgedi.save(nn.Conv2d(3, 2, 1), tmp_path / "s", x())
    with pytest.raises(ValueError, match=r"are on meta; save both from the CPU"):
        edgedi.save(nn.Conv2d(3, 2, 1).eval().to("meta"), tmp_path / "s", x().to("meta"))


# --- files that are not as they were ----------------------------------------------------------------------------------


def edited(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        found = json.loads((folder / PROGRAM).read_text())
        change(found)
        (folder / PROGRAM).write_text(json.dumps(found))

    return edit


def cut(name: str, keep: float) -> Callable[[Path], None]:
    def cut_off(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(keep * len(content))])

    return cut_off


def flipped(folder: Path) -> None:
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[-3] ^= 1
    (folder / WEIGHTS).write_bytes(content)


def pickled(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(pickle.dumps(Trap())) and None


class Trap:
    """Unpickled, it would leave a trace in the environment."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.putenv, ("EDGEDI_TRAP", "sprung")


BROKEN: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    "no program": (lambda folder: (folder / PROGRAM).unlink(), PROGRAM, "it is not there"),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), WEIGHTS, "it is not there"),
    "empty program": (cut(PROGRAM, 0), PROGRAM, "Expecting value"),
    "half a program": (cut(PROGRAM, 0.5), PROGRAM, "line 1 column"),
    "half of the weights": (cut(WEIGHTS, 0.5), WEIGHTS, "does not hold the weights that program.json was saved with"),
    "one bit of the weights": (flipped, WEIGHTS, "does not hold the weights"),
    "pickled program": (pickled(PROGRAM), PROGRAM, "can't decode byte"),
    "pickled weights": (pickled(WEIGHTS), WEIGHTS, "does not hold the weights"),
    "nested program": (lambda f: (f / PROGRAM).write_text("[" * 100_000), PROGRAM, "nested too deep"),
    "foreign JSON": (lambda f: (f / PROGRAM).write_text('{"a": 1}'), PROGRAM, 'does not say "edgedi-program"'),
    "another version": (edited(lambda p: p.update(version=9)), PROGRAM, "version 9 where this edgedi reads 1"),
    "a field too many": (edited(lambda p: p.update(code="x")), PROGRAM, r"fields \['code'\]"),
    "a field too few": (edited(lambda p: p.pop("calls")), PROGRAM, r"fields \['calls'\]"),
    "no list of calls": (edited(lambda p: p.update(calls=3)), PROGRAM, "wrong structure"),
    "a call of another kind": (edited(lambda p: p["calls"].append({"x": 1})), PROGRAM, "wrong structure"),
    "a later call": (edited(lambda p: p["calls"].reverse()), PROGRAM, "which is not there before it"),
    "a call twice": (edited(lambda p: p["calls"].append(p["calls"][-1])), PROGRAM, "two calls"),
    "an unknown argument": (edited(lambda p: p["calls"][0]["args"].append({"code": "x"})), PROGRAM, "argument"),
    "another weight": (edited(lambda p: p["weights"].pop("0.weight")), PROGRAM, "'0.weight', which is not there"),
    "another shape": (
        edited(lambda p: p["weights"]["0.weight"].update(shape=[1])), WEIGHTS, "names or shapes are not those",
    ),
    "another dtype": (edited(lambda p: p["tensors"][0].update(dtype="os.system")), PROGRAM, "dtype"),
    "an impossible name": (
        edited(lambda p: p["calls"][0]["kwargs"].update(x={"dtype": "load"})), PROGRAM, "torch has no dtype 'load'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", sorted(BROKEN))
def test_a_broken_folder_names_the_file_and_what_to_do(case: str, small: nn.Module, tmp_path: Path):
    edgedi.save(small, tmp_path / "s", x())
    break_it, name, words = BROKEN[case]
    break_it(tmp_path / "s")
    with pytest.raises(ValueError, match=words) as raised:
        edgedi.load(tmp_path / "s")
    assert str(raised.value).startswith(f"{tmp_path / 's' / name} cannot be loaded: ")
    assert "copy the whole folder again, or save the network again" in str(raised.value)
    assert "EDGEDI_TRAP" not in os.environ


OPERATORS = [
    "aten.from_file.default", "aten.add_.Tensor", "aten.save.default", "aten._print.default", "aten.nothing.default",
    "aten.conv2d.nothing", "aten.__class__.__init__", "aten._cudnn_rnn.default", "aten.rand.out", "torch.os.system",
    "os.system", "prims.add.default", "builtins.eval.default", "_operator.getitem", "aten..default", "aten.conv2d",
]  # fmt: skip


@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_that_could_do_more_than_compute_is_refused(name: str, small: nn.Module, tmp_path: Path):
    edgedi.save(small, tmp_path / "s", x())
    edited(lambda program: program["calls"][0].update(operator=name))(tmp_path / "s")
    with pytest.raises(ValueError, match=r"operator"):
        edgedi.load(tmp_path / "s")


@pytest.mark.parametrize("name", ["forward", "_modules.x", "a..b", "0.weight.more", "x.__class__"])
def test_a_weight_whose_name_would_replace_something_is_refused(name: str, small: nn.Module):
    program = export(small, (x(),)).program
    program = replace(program, weights={**program.weights, name: program.weights["0.bias"]})
    with pytest.raises(ValueError, match="no parameter can have the name"):
        SavedNetwork(program, {**small.state_dict(), name: torch.zeros(5)})


def test_what_is_no_folder(small: nn.Module, tmp_path: Path):
    with pytest.raises(ValueError, match=r"nowhere is not there; give the folder that edgedi.save or edgedi-"):
        edgedi.load(tmp_path / "nowhere")
    edgedi.save(small, tmp_path / "s", x())
    with pytest.raises(ValueError, match=r"model.pt2 is a file; give the folder"):
        edgedi.load(tmp_path / "s" / EXPORTED)
