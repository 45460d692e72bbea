"""From a module to a layer graph: what is refused, what is folded and fused, what stays opaque."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

import tests.exactness
from edgedi.errors import GraphError
from edgedi.partition.capture.capture import Capture, capture, capture_model, taken_apart
from edgedi.runtime.execution.reference import InProcess

X = torch.randn(1, 3, 8, 9, generator=torch.Generator().manual_seed(0))


def of(function: Any, **modules: nn.Module) -> nn.Module:
    class Module(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, module in modules.items():
                setattr(self, name, module)

        def forward(self, *inputs: Any) -> Any:
            return function(*inputs, *(getattr(self, name) for name in modules))

    torch.manual_seed(0)
    return Module().eval()


@pytest.mark.parametrize("inputs", [(), (X,), (X, X), (X, nn.Parameter(X)), (X, 2.0), ([X, X],), ({"a": X}, None)])
def test_arguments_are_taken_apart_as_pytree_does(inputs: tuple[Any, ...]) -> None:
    leaves, structure = taken_apart(inputs)
    expected, known = pytree.tree_flatten((inputs, {}))
    assert structure == known
    assert [id(leaf) for leaf in leaves] == [id(leaf) for leaf in expected]


def ops(found: Capture) -> list[str]:
    return [layer.op for layer in found.graph.layers]


def checked(model: nn.Module, *inputs: Any) -> Capture:
    """The capture of ``model``, once its answer is the model's own."""
    found = capture_model(model, inputs)
    with torch.inference_mode():
        expected = model(*inputs)
    assert tests.exactness.worst_output(InProcess.whole(found)(*inputs), expected) <= 2e-6
    return found


# --- refused ---------------------------------------------------------------------------------------------------------


def test_a_model_in_training_mode():
    with pytest.raises(ValueError, match=r"in training mode: the model, 0; call model.eval\(\)"):
        capture(nn.Sequential(nn.Conv2d(3, 3, 1)), X)


def test_a_dropout_left_in_training_mode_is_named():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Dropout(0.5)).eval()
    model[1].train()
    with pytest.raises(ValueError, match=r"in training mode: 1;"):
        capture(model, X)


def test_many_modules_in_training_mode_are_counted():
    with pytest.raises(ValueError, match=r"the model, 0, 1, 2, 3 and 5 more"):
        capture(nn.Sequential(*(nn.ReLU() for _ in range(9))), X)


@pytest.mark.parametrize(
    "random", [F.dropout, lambda x: x + torch.rand_like(x), lambda x: x * torch.rand(1), F.dropout2d]
)
def test_random_numbers(random: Any):
    with pytest.raises(GraphError, match="draws random numbers"):
        capture(of(random), X)


def test_dropout_that_is_off_is_nothing():
    assert ops(checked(of(lambda x, drop: drop(x).relu(), drop=nn.Dropout2d()), X)) == ["unary"]


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        return x + self.calls


def test_a_model_that_changes_its_buffers():
    with pytest.raises(GraphError, match="changes calls while it runs"):
        capture(Counting().eval(), X)


def test_a_model_that_changes_its_input():
    with pytest.raises(GraphError, match="while it runs"):
        capture(of(lambda x: x.add_(1)), X.clone())


def test_a_model_that_does_not_export():
    with pytest.raises(GraphError, match="Module does not export"):
        capture(of(lambda x: x + 1 if x.sum() > 0 else x - 1), X)


def test_inputs_without_a_tensor():
    with pytest.raises(TypeError, match="hold no tensor"):
        capture(of(lambda x: x), 3)


def test_what_is_not_a_module():
    with pytest.raises(TypeError, match=r"is a function; give a torch\.nn\.Module"):
        capture(lambda x: x, X)


def test_element_types_that_do_not_travel():
    with pytest.raises(GraphError, match="complex64 is not supported"):
        capture(of(torch.fft.fft), X)


# --- folded and fused -------------------------------------------------------------------------------------------------


def norm(channels: int) -> nn.BatchNorm2d:
    made = nn.BatchNorm2d(channels)
    nn.init.uniform_(made.running_mean, -1, 1)
    nn.init.uniform_(made.running_var, 0.5, 2)
    return made


def conv(inputs: int, outputs: int, kernel: int = 3) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)


def test_normalisation_and_activation_go_into_the_convolution():
    found = checked(of(lambda x, c, n: F.relu(n(c(x))), c=conv(3, 4), n=norm(4)), X)
    assert ops(found) == ["conv"]
    assert found.graph.layers[0].attribute("activation") == "relu"
    assert set(found.graph.layers[0].weights) == {"weight", "bias"}


def test_normalisation_before_a_padded_convolution_stays():
    """Folded forward it would shift the zeros of the padding too."""
    assert ops(checked(of(lambda x, n, c: c(n(x)), n=norm(3), c=conv(3, 4)), X)) == ["affine", "conv"]


def test_normalisation_of_a_map_that_others_read_stays():
    model = of(lambda x, c, n: (n(y := c(x)), y), c=conv(3, 4), n=norm(4))
    assert ops(checked(model, X)) == ["conv", "affine"]


def test_a_transposed_convolution_takes_normalisation():
    assert ops(checked(of(lambda x, c, n: n(c(x)), c=nn.ConvTranspose2d(3, 4, 3, 2), n=norm(4)), X)) == [
        "conv_transpose"
    ]
    grouped = of(lambda x, c, n: n(c(x)), c=nn.ConvTranspose2d(3, 6, 3, 2, groups=3), n=norm(6))
    assert ops(checked(grouped, X)) == ["conv_transpose", "affine"]


def test_a_residual_add_becomes_an_input():
    for add in (lambda x, y: x + y, lambda x, y: y + x):
        found = checked(of(lambda x, c, n, add=add: F.relu(add(n(c(x)), x)), c=conv(3, 3), n=norm(3)), X)
        assert ops(found) == ["conv"]
        assert found.graph.layers[0].inputs == ("inputs_0", "inputs_0")


@pytest.mark.parametrize("other", [lambda x: x.mean((2, 3), keepdim=True), lambda x: x[:, :1], lambda x: x[:, :, :1]])
def test_a_broadcast_addition_stays(other: Any):
    found = checked(of(lambda x, c: c(x) + other(x), c=conv(3, 3)), X)
    assert ops(found)[-1] == "binary"


@pytest.mark.parametrize(
    "form",
    [lambda y, x: y + y, lambda y, x: torch.add(y, x, alpha=2), lambda y, x: (y + x, y), lambda y, x: F.relu(y) + x],
)
def test_additions_that_are_no_residual(form: Any):
    assert "residual" not in str(checked(of(lambda x, c: form(c(x), x), c=conv(3, 3)), X).graph)


def test_an_activation_that_others_bypass_stays():
    assert ops(checked(of(lambda x, c: (F.relu(y := c(x)), y), c=conv(3, 3)), X)) == ["conv", "unary"]


def test_a_scaled_convolution():
    assert ops(checked(of(lambda x, c: c(x) * 0.5, c=conv(3, 3)), X)) == ["conv"]


# --- constants, structure, opaque layers ------------------------------------------------------------------------------


def test_what_depends_on_weights_alone_is_computed_once():
    found = checked(of(lambda x, c: c(x), c=nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3))), X)
    assert ops(found) == ["conv"]
    assert len(found.weights) == 2


def test_masks_made_of_shapes_are_constants():
    found = checked(of(lambda x: x + x.new_zeros(x.shape) + torch.ones_like(x).cumsum(2)), X)
    assert set(ops(found)) == {"binary", "constant"}


def test_layers_that_nobody_reads_are_dropped():
    assert ops(checked(of(lambda x: (torch.sin(x), x.relu())[1]), X)) == ["unary"]


def test_weights_that_nobody_reads_are_dropped():
    found = checked(of(lambda x, c, d: (d(x), c(x))[1], c=conv(3, 4), d=conv(3, 5)), X)
    assert set(found.weights) == set(found.graph.layers[0].weights.values())


def test_a_shared_weight_is_kept_once():
    found = checked(of(lambda x, c: c(c(x)), c=conv(3, 3)), X)
    assert ops(found) == ["conv", "conv"]
    assert len(found.weights) == 1


def test_an_input_may_be_an_output_and_outputs_may_repeat():
    found = checked(of(lambda x: {"a": x, "b": (y := x.relu(), y), "c": None}), X)
    assert found.graph.outputs == ("inputs_0", "relu")


def test_a_constant_output():
    found = capture_model(of(lambda x: (x.relu(), torch.arange(3), 5)), X)
    _, constant, number = InProcess.whole(found)(X)
    assert torch.equal(constant, torch.arange(3))
    assert number == 5


def test_assertions_about_types_are_nothing():
    assert ops(checked(of(lambda x: x.float().relu()), X)) == ["unary"]


@pytest.mark.parametrize("slopes", [1, 3])
def test_prelu(slopes: int):
    """One slope is no weight: along the channels it could not be cut."""
    expected = {1: "unary", 3: "prelu"}[slopes]
    assert ops(checked(of(lambda x, p: p(x), p=nn.PReLU(slopes)), X)) == [expected]


def test_maps_without_a_batch_dimension_are_opaque_to_sliding_windows():
    found = checked(of(lambda x, c, p: p(c(x[0])), c=conv(3, 4), p=nn.MaxPool2d(2)), X)
    assert Counter(ops(found))["opaque"] == 2


OPAQUE = {
    "cumsum": lambda x: x.cumsum(2),
    "flip": lambda x: x.flip(3),
    "variance": lambda x: x.var((2, 3)),
    "where": lambda x: torch.where(x > 0, x, 0.1 * x),
    "max and index": lambda x: x.max(1),
    "several of one": lambda x: torch.topk(x, 2, dim=1)[0] + torch.topk(x, 2, dim=1)[1],
    "norm of order 1": lambda x: x.norm(p=1, dim=1),
    "einsum with a trace": lambda x: torch.einsum("bcij->bc", x),
    "integers": lambda x: x.argmax(1) + 1,
}


@pytest.mark.parametrize("name", OPAQUE)
def test_what_is_not_in_the_table_runs_at_home(name: str):
    found = checked(of(OPAQUE[name]), X)
    assert "opaque" in ops(found)
    targets = [layer.attributes["target"] for layer in found.graph.layers if layer.op == "opaque"]
    assert all(target.startswith("aten.") for target in targets)


EXPRESSED = {
    "rsub": lambda x: 1 - x,
    "reciprocal": lambda x: 2 / (x + 9),
    "amin": lambda x: x.amin((2, 3)),
    "norm": lambda x: F.normalize(x, dim=1),
    "einsum": lambda x: torch.einsum("bcij,bckj->bcik", x, x),
    "einsum transposed": lambda x: torch.einsum("bcij,bcjk->bcik", x.mT, x),
    "glu": lambda x: F.glu(torch.cat([x, x], 1), 1),
    "channel shuffle": lambda x: F.channel_shuffle(x, 3),
    "pixel unshuffle": lambda x: F.pixel_unshuffle(x[..., :8], 2),
    "stack": lambda x: torch.stack([x, x * 2], -1),
    "unbind": lambda x: x.unbind(1)[2],
    "mean of all": lambda x: x.mean(),
    "instance norm": F.instance_norm,
    "local response norm": lambda x: F.local_response_norm(x, 3),
    "negative index": lambda x: x[:, -1],
    "maximum": lambda x: torch.max(x, -x),
    "log softmax": lambda x: F.log_softmax(x, 1),
}


@pytest.mark.parametrize("name", EXPRESSED)
def test_what_other_rows_of_the_table_express(name: str):
    assert "opaque" not in ops(checked(of(EXPRESSED[name]), X))


def test_what_does_not_export_names_the_line_of_the_model() -> None:
    class Branches(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1 if x.sum() > 0 else x - 1

    with pytest.raises(
        GraphError, match=r"Branches does not export at .*test_capture\.py:\d+ in forward: return x \+ 1 if"
    ):
        capture(Branches().eval(), torch.randn(1, 3, 4, 4))


def test_shapes_that_depend_on_data_name_operator_and_line() -> None:
    class Where(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.nonzero()

    with pytest.raises(GraphError, match=r"test_capture\.py.*return x\.nonzero\(\).*layer nonzero.*aten\.nonzero"):
        capture(Where().eval(), torch.randn(1, 3, 4, 4))
