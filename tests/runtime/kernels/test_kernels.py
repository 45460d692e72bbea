"""Each operator at every interval of a small map is that part of the whole operator; and fused is what eager is."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgedi.errors import LocalProtocolError
from edgedi.partition.capture.capture import Capture, capture_model
from edgedi.partition.graph.geometry import Interval, Region
from edgedi.partition.graph.graph import Layer, LayerGraph, TensorSpec
from edgedi.partition.graph.operators import TABLE, needs, weight_interval
from edgedi.partition.plan.program import UNSPLIT, Piece, Run
from edgedi.runtime.kernels import eager, fused, prepare
from tests.exactness import TOLERANCE, cast, relative, whole_maps

Function = Callable[[Tensor], Tensor]


def of(function: Function) -> nn.Module:
    class Module(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return function(x)

    return Module()


CASES: dict[str, nn.Module] = {
    "conv": nn.Conv2d(4, 6, 3, padding=1),
    "conv even": nn.Conv2d(4, 6, (2, 4), padding=(1, 2)),
    "conv strided": nn.Conv2d(4, 6, 5, stride=3, padding=2),
    "conv stride over kernel": nn.Conv2d(4, 4, 2, stride=4),
    "conv dilated": nn.Conv2d(4, 4, 3, padding=4, dilation=3),
    "conv padded beyond": nn.Conv2d(4, 4, 2, padding=4),
    "conv grouped": nn.Conv2d(4, 6, 3, groups=2, padding=1),
    "conv depthwise doubled": nn.Conv2d(4, 8, 3, groups=4, padding=1, bias=False),
    "conv same": nn.Conv2d(4, 4, 4, padding="same"),
    "conv reflect": nn.Conv2d(4, 4, 5, padding=2, padding_mode="reflect"),
    "conv circular": nn.Conv2d(4, 4, 5, padding=2, padding_mode="circular"),
    "conv replicate": nn.Conv2d(4, 4, 5, padding=3, padding_mode="replicate"),
    "conv transposed": nn.ConvTranspose2d(4, 3, 3, stride=2, padding=1, output_padding=1),
    "conv transposed sparse": nn.ConvTranspose2d(4, 4, 2, stride=4, output_padding=3, groups=2),
    "conv transposed dilated": nn.ConvTranspose2d(4, 4, (3, 2), stride=(1, 3), dilation=2, padding=1),
    "max pool": nn.MaxPool2d(3, 2, 1),
    "max pool ceil": nn.MaxPool2d(3, 2, ceil_mode=True),
    "max pool dilated": nn.MaxPool2d(2, 3, 1, dilation=2),
    "avg pool": nn.AvgPool2d(3, 2, 1),
    "avg pool ceil": nn.AvgPool2d(3, 2, 1, ceil_mode=True),
    "avg pool uncounted": nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False),
    "avg pool divisor": nn.AvgPool2d((2, 3), 1, (1, 1), divisor_override=5),
    "adaptive avg": nn.AdaptiveAvgPool2d((5, 4)),
    "adaptive avg up": nn.AdaptiveAvgPool2d((11, 12)),
    "adaptive max": nn.AdaptiveMaxPool2d((5, 4)),
    "batch norm": nn.BatchNorm2d(4),
    "prelu": nn.PReLU(4),
    "prelu of one": nn.PReLU(),
    "group norm": nn.GroupNorm(2, 4),
    "layer norm": of(lambda x: F.layer_norm(x.permute(0, 2, 3, 1), (4,))),
    "local response norm": nn.LocalResponseNorm(3),
    "linear": of(lambda x: F.linear(x.permute(0, 2, 3, 1), torch.ones(3, 4, dtype=x.dtype).cumsum(1))),
    "pixel shuffle": nn.PixelShuffle(2),
    "pixel unshuffle": of(lambda x: F.pixel_unshuffle(x[:, :, :6, :6], 3)),
    "channel shuffle": nn.ChannelShuffle(2),
    "cat rows": of(lambda x: torch.cat([x, x * 2, x[:, :, :2]], 2)),
    "cat channels": of(lambda x: torch.cat([x, x * 2], 1)),
    "sliced": of(lambda x: x[:, 1:, 1::2, ::3]),
    "padded": of(lambda x: F.pad(x, (1, 2, 3, 0), value=0.5)),
    "padded reflect": of(lambda x: F.pad(x, (1, 2, 3, 0), "reflect")),
    "padded circular": of(lambda x: F.pad(x, (1, 2, 3, 4), "circular")),
    "roll": of(lambda x: torch.roll(x, (2, -1), (2, 3))),
    "broadcast": of(lambda x: x * x.mean((2, 3), keepdim=True) + x[:, :1]),
    "softmax": nn.Softmax2d(),
    "flattened": of(lambda x: x.flatten(1)),
    "flattened map": of(lambda x: x.flatten(2)),
    "split in two": of(lambda x: x.unflatten(3, (2, -1))),
    "expanded": of(lambda x: x[:, :1].expand(-1, 3, -1, -1)),
    "matmul": of(lambda x: x @ x.transpose(2, 3)),
    "attention": of(lambda x: F.scaled_dot_product_attention(x, x * 0.5, x + 1)),
    "einsum": of(lambda x: torch.einsum("bchw,bciw->bchi", x, x)),
    "mean": of(lambda x: x.mean((2, 3))),
    "amax": of(lambda x: x.amax(1, keepdim=True)),
    "norm": of(lambda x: F.normalize(x, dim=1)),
    "cast": of(lambda x: x.to(torch.float32) if x.dtype == torch.float64 else x.to(torch.float64)),
    "stack": of(lambda x: torch.stack([x, x * 2], 2)),
    **{
        f"resize {mode} {size or factor} {corners} {smooth}": of(
            lambda x, m=mode, s=size, f=factor, c=corners, a=smooth: F.interpolate(x, s, f, m, c, antialias=a)
        )
        for mode, size, factor, corners, smooth in (
            ("nearest", (13, 5), None, None, False),
            ("nearest", None, 1.7, None, False),
            ("nearest-exact", (13, 5), None, None, False),
            ("bilinear", (13, 5), None, False, False),
            ("bilinear", (13, 5), None, True, False),
            ("bilinear", None, 1.05, False, False),
            ("bilinear", (5, 13), None, False, True),
            ("bicubic", (13, 5), None, False, False),
            ("bicubic", None, (0.4, 2.3), False, False),
            ("bicubic", (5, 13), None, True, True),
        )
    },
}
SHAPE = (2, 4, 7, 6)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def captured(name: str) -> tuple[Capture, dict[str, Tensor]]:
    torch.manual_seed(0)
    model = CASES[name].double().eval()
    capture = capture_model(model, torch.randn(SHAPE, dtype=torch.float64))
    x = torch.randn(SHAPE, dtype=torch.float64)
    return capture, whole_maps(capture, capture.flatten((x,)))


def regions(layer: Layer) -> Iterator[Region]:
    """Every interval along every dimension."""
    for dim, length in enumerate(layer.spec.shape):
        for start, stop in itertools.combinations(range(length + 1), 2):
            yield Region(dim, Interval(start, stop))


def run_part(capture: Capture, layer: Layer, out: Region, maps: dict[str, Tensor], *, narrow: bool) -> Tensor | None:
    """``out`` of the layer, from whole inputs or from the parts that the rule names; ``None`` if it does not split."""
    parts = needs(layer, capture.graph.input_shapes(layer), out)
    if parts is None:
        return None
    pieces, tensors = [], []
    for name, part in zip(layer.inputs, parts, strict=True):
        cut = narrow and part is not None
        pieces.append(Piece(name, part.dim, part.interval) if cut else Piece(name))
        tensors.append(maps[name].narrow(part.dim, part.interval.start, len(part.interval)) if cut else maps[name])
    chosen = weight_interval(layer, out)
    weights = {
        role: capture.weights[name] if chosen is None else capture.weights[name][chosen.start : chosen.stop]
        for role, name in layer.weights.items()
    }
    return prepare(Run(Piece(layer.name, out.dim, out.interval), tuple(pieces)), capture.graph, weights, None)(*tensors)


@pytest.mark.parametrize("name", CASES)
def test_every_interval_is_that_part_of_the_whole(name: str):
    capture, maps = captured(name)
    with torch.inference_mode():
        for layer in capture.graph.layers:
            assert layer.op in TABLE
            assert layer.op != "opaque"
            scale = maps[layer.name].double().abs().max().item()
            for out in regions(layer) if layer.op not in ("partial", "constant") else ():
                expected = maps[layer.name].narrow(out.dim, out.interval.start, len(out.interval))
                for narrow in (False, True):
                    made = run_part(capture, layer, out, maps, narrow=narrow)
                    if made is not None:
                        limit = TOLERANCE["float64"] if layer.spec.dtype == "float64" else 1e-6
                        assert relative(made, expected, scale) <= limit, f"{layer.name} {out} narrow={narrow}"


ACTIVATIONS: dict[str, nn.Module | None] = {
    "none": None, "relu": nn.ReLU(), "sigmoid": nn.Sigmoid(), "tanh": nn.Tanh(), "silu": nn.SiLU(),
    "hardswish": nn.Hardswish(), "hardsigmoid": nn.Hardsigmoid(), "hardtanh": nn.Hardtanh(-0.5, 0.7),
    "relu6": nn.ReLU6(), "leaky_relu": nn.LeakyReLU(0.2), "gelu": nn.GELU(), "gelu tanh": nn.GELU("tanh"),
    "elu": nn.ELU(), "mish": nn.Mish(),
}  # fmt: skip


class Block(nn.Module):
    def __init__(self, conv: nn.Conv2d, act: nn.Module | None, *, residual: bool) -> None:
        super().__init__()
        self.conv, self.act, self.residual = conv, act or nn.Identity(), residual

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.act(y + x if self.residual else y)


CONVOLUTIONS = [name for name, case in CASES.items() if isinstance(case, nn.Conv2d) and case.padding_mode == "zeros"]
RESIDUALS = ("residual", "residual pointwise", "conv depthwise doubled")


FUSED = [*itertools.product(CONVOLUTIONS, ("none", "relu")), *itertools.product(RESIDUALS, ACTIVATIONS)]


@pytest.mark.parametrize(("name", "activation"), FUSED)
def test_fused_is_what_eager_is(name: str, activation: str):
    torch.manual_seed(0)
    residual = name.startswith("residual")
    conv = nn.Conv2d(4, 4, 1) if name == "residual pointwise" else nn.Conv2d(4, 4, 3, padding=1)
    model = Block(conv if residual else CASES[name].float(), ACTIVATIONS[activation], residual=residual).eval()
    x = torch.randn(1, *SHAPE[1:])
    capture = capture_model(model, x)
    layer = capture.graph.layers[-1]
    maps = whole_maps(
        cast(capture, torch.float64), {key: value.double() for key, value in capture.flatten((x,)).items()}
    )
    low = {key: value.float() for key, value in maps.items()}
    weights = {role: capture.weights[weight] for role, weight in layer.weights.items()}
    packer = fused.Packer()
    inputs = tuple(map(Piece, layer.inputs))
    with torch.inference_mode():
        for out in (None, *(region for region in regions(layer) if region.dim >= 2)):
            piece = Piece(layer.name) if out is None else Piece(layer.name, out.dim, out.interval)
            made = prepare(Run(piece, inputs), capture.graph, weights, packer)(*(low[key] for key in layer.inputs))
            expected = (
                maps[layer.name]
                if out is None
                else maps[layer.name].narrow(out.dim, out.interval.start, len(out.interval))
            )
            scale = maps[layer.name].abs().max().item()
            assert relative(made, expected, scale) <= 2e-6, f"{layer.op} {piece}"


@pytest.mark.skipif(not fused.available(), reason="this torch or processor has no fused operators; eager serves")
def test_packed_weights_are_shared_between_equal_layouts():
    packer, weight = fused.Packer(), torch.randn(16, 16, 3, 3)
    arguments = ([1, 1], [1, 1], [1, 1], 1)
    first = packer.pack(weight, (*arguments, [1, 16, 20, 20]))
    assert packer.pack(weight, (*arguments, [1, 16, 20, 20])) is first
    assert packer.num_bytes == first.numel() * 4


def test_inputs_are_not_written():
    """A residual may still be on its way to a neighbour when it is added."""
    torch.manual_seed(0)
    model = Block(nn.Conv2d(4, 4, 3, padding=1), nn.SiLU(), residual=True).eval()
    x = torch.randn(1, *SHAPE[1:])
    capture = capture_model(model, x)
    before = x.clone()
    with torch.inference_mode():
        (layer,) = capture.graph.layers
        weights = {role: capture.weights[name] for role, name in layer.weights.items()}
        run = Run(Piece(layer.name), tuple(map(Piece, layer.inputs)))
        prepare(run, capture.graph, weights, fused.Packer())(x, x)
    assert torch.equal(x, before)


def test_an_operator_outside_the_table_is_refused():
    spec = TensorSpec((1, 2))
    layer = Layer(name="evil", op="opaque", inputs=("x",), spec=spec, attributes={"target": "aten.from_file.default"})
    graph = LayerGraph(inputs={"x": spec}, layers=(layer,), outputs=("evil",))
    with pytest.raises(LocalProtocolError, match=r"opaque.*evil"):
        prepare(Run(Piece("evil", UNSPLIT), (Piece("x"),)), graph, {}, None)


def test_every_row_of_the_table_has_a_kernel():
    assert set(eager._MAKERS) == set(TABLE) - {"opaque"}
