"""Random small CNNs, drawn by hypothesis: every kind of layer at every geometry that torch accepts.

A network is drawn as a list of steps with their arguments (a *recipe*, printed on failure); each step keeps the map's
size within bounds, so that nearly every recipe is a network.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

Draw = Callable[[Any], Any]
LARGEST = 48
SMALLEST = 3

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu, "relu6": F.relu6, "sigmoid": F.sigmoid, "tanh": F.tanh, "silu": F.silu, "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"), "hardswish": F.hardswish, "hardsigmoid": F.hardsigmoid,
    "hardtanh": lambda x: F.hardtanh(x, -0.7, 0.4), "leaky_relu": lambda x: F.leaky_relu(x, 0.2), "elu": F.elu,
    "selu": F.selu, "celu": lambda x: F.celu(x, 0.7), "mish": F.mish, "softplus": F.softplus,
    "logsigmoid": F.logsigmoid, "softsign": F.softsign, "tanhshrink": F.tanhshrink,
    "threshold": lambda x: F.threshold(x, 0.1, -0.3), "one_minus": lambda x: 1 - x, "square": lambda x: x**2,
    "softmax": lambda x: F.softmax(x, dim=1), "abs_sqrt": lambda x: torch.sqrt(x.abs() + 1),
    "clamp": lambda x: x.clamp(-0.5), "glu": lambda x: F.glu(torch.cat([x, x * 0.5], 1), 1),
    "hardshrink": F.hardshrink, "divide": lambda x: x / (1 + x * x),
    "normalize": lambda x: F.normalize(x, dim=1), "rsub": lambda x: torch.rsub(x, 0.3, alpha=2),
}  # fmt: skip


class Step(nn.Module):
    """One step of a recipe: ``function`` of the map, or of a list of maps."""

    def __init__(self, function: Callable[..., Tensor], **modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        self.parts = nn.ModuleDict(modules)

    def forward(self, *maps: Tensor) -> Tensor:
        return self.function(*maps, **self.parts)


@dataclass
class Shape:
    """Batch is left out: no step looks at it."""

    channels: int
    rows: int
    columns: int

    @property
    def size(self) -> tuple[int, int]:
        return self.rows, self.columns


@dataclass
class Network(nn.Module):
    """Steps in order; step k reads the maps ``reads[k]`` (0 is the input) and makes map k + 1."""

    input: tuple[int, ...]
    recipe: list[str] = field(default_factory=list)
    outputs: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        super().__init__()
        self.steps = nn.ModuleList()
        self.reads: list[tuple[int, ...]] = []

    def __hash__(self) -> int:  # dataclass equality would make modules unhashable
        return id(self)

    def forward(self, x: Tensor) -> Any:
        maps = [x]
        for step, reads in zip(self.steps, self.reads, strict=True):
            maps.append(step(*(maps[index] for index in reads)))
        found = tuple(maps[index] for index in self.outputs)
        return found[0] if len(found) == 1 else found

    def __repr__(self) -> str:
        return f"input {self.input}; " + "; ".join(self.recipe) + f"; outputs {self.outputs}"


@st.composite
def networks(draw: Draw, max_steps: int = 6) -> Network:
    """A random network in evaluation mode, with calibrated normalisation, in float64."""
    rows, columns = draw(st.integers(5, 20)), draw(st.integers(5, 20))
    shape = Shape(draw(st.sampled_from((2, 4, 6))), rows, columns)
    network = Network(input=(draw(st.sampled_from((1, 1, 1, 2, 3))), shape.channels, rows, columns))
    torch.manual_seed(draw(st.integers(0, 9999)))
    shapes = [shape]
    for _ in range(draw(st.integers(1, max_steps))):
        _add(draw, network, shapes)
    last = len(shapes) - 1
    extra = draw(st.sampled_from(((), (), (), (last,), (0,), (max(0, last - 1),))))
    network.outputs = (last, *extra)
    return _prepared(network)


def _prepared(network: Network) -> Network:
    network.double().eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
            nn.init.normal_(module.running_mean, 0, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network


def _add(draw: Draw, network: Network, shapes: list[Shape]) -> None:
    read = len(shapes) - 1 if draw(st.integers(0, 4)) else draw(st.integers(0, len(shapes) - 1))
    kind = draw(st.sampled_from(sorted(KINDS)))
    made = KINDS[kind](draw, shapes[read])
    if kind == "join":
        made, others = _joined(draw, shapes, read)
    else:
        others = ()
    if made is None:
        return
    text, step, shape = made
    if not (1 <= shape.rows <= LARGEST and 1 <= shape.columns <= LARGEST and shape.channels <= 48):
        return
    network.recipe.append(f"{len(shapes)} = {text} of {(read, *others)}")
    network.steps.append(step)
    network.reads.append((read, *others))
    shapes.append(shape)


Made = tuple[str, Step, Shape] | None


def _pair(draw: Draw, low: int, high: int) -> tuple[int, int]:
    first = draw(st.integers(low, high))
    return (first, draw(st.integers(low, high))) if draw(st.booleans()) else (first, first)


def _windows(length: int, kernel: int, stride: int, pad: int, dilation: int) -> int:
    return (length + pad - dilation * (kernel - 1) - 1) // stride + 1


def conv(draw: Draw, shape: Shape) -> Made:
    kernel, stride, dilation = _pair(draw, 1, 7), _pair(draw, 1, 4), _pair(draw, 1, 3)
    padding = tuple(draw(st.integers(0, max(1, k * d // 2 + 1))) for k, d in zip(kernel, dilation, strict=True))
    groups = draw(st.sampled_from([g for g in (1, 1, 2, 3, shape.channels) if shape.channels % g == 0]))
    channels = groups * draw(st.integers(1, max(1, 8 // groups)))
    mode = draw(st.sampled_from(("zeros", "zeros", "zeros", "reflect", "replicate", "circular")))
    out = [
        _windows(n, k, s, 2 * p, d) for n, k, s, p, d in zip(shape.size, kernel, stride, padding, dilation, strict=True)
    ]
    fits = mode == "zeros" or all(p < n for p, n in zip(padding, shape.size, strict=True))
    if min(out) < 1 or not fits:
        return None
    layer = nn.Conv2d(
        shape.channels, channels, kernel, stride, padding, dilation, groups, draw(st.booleans()), padding_mode=mode
    )
    norm = nn.BatchNorm2d(channels) if draw(st.booleans()) else nn.Identity()
    act = draw(st.sampled_from((None, *sorted(ACTIVATIONS))))
    text = f"conv {channels} kernel {kernel} stride {stride} pad {padding} {mode} dilation {dilation} groups {groups}"
    text += f" {type(norm).__name__} {act}"
    function = ACTIVATIONS[act] if act else lambda x: x
    return text, Step(lambda x, layer, norm: function(norm(layer(x))), layer=layer, norm=norm), Shape(channels, *out)


def same_conv(draw: Draw, shape: Shape) -> Made:
    """TensorFlow's padding, more of it after than before; or torch's own ``padding='same'`` at stride 1."""
    kernel, dilation, channels = _pair(draw, 1, 6), draw(st.integers(1, 2)), draw(st.integers(1, 6))
    if draw(st.booleans()):
        layer = nn.Conv2d(shape.channels, channels, kernel, padding="same", dilation=dilation)
        return (
            f"same conv kernel {kernel} dilation {dilation}",
            Step(lambda x, layer: layer(x), layer=layer),
            Shape(channels, *shape.size),
        )
    stride = draw(st.integers(1, 4))
    totals = [max((-(-n // stride) - 1) * stride + k - n, 0) for n, k in zip(shape.size, kernel, strict=True)]
    pads = [totals[1] // 2, totals[1] - totals[1] // 2, totals[0] // 2, totals[0] - totals[0] // 2]
    layer = nn.Conv2d(shape.channels, channels, kernel, stride)
    step = Step(lambda x, layer: layer(F.pad(x, pads)), layer=layer)
    out = [-(-n // stride) for n in shape.size]
    return f"TF conv {channels} kernel {kernel} stride {stride} pads {pads}", step, Shape(channels, *out)


def residual(draw: Draw, shape: Shape) -> Made:
    """convolution + the map itself (+ broadcast gate), then an activation: what fusion puts together."""
    kernel = draw(st.sampled_from((1, 3, 5)))
    layer = nn.Conv2d(shape.channels, shape.channels, kernel, padding=kernel // 2)
    norm = nn.BatchNorm2d(shape.channels)
    form = draw(st.sampled_from(("add", "swapped", "twice", "gate", "mul")))
    act = draw(st.sampled_from(("relu", "silu", "gelu", "elu")))

    def function(x: Tensor, layer: nn.Module, norm: nn.Module) -> Tensor:
        y = norm(layer(x))
        forms = {
            "add": lambda: y + x,
            "swapped": lambda: x + y,
            "twice": lambda: y + y,
            "gate": lambda: y + x.mean((2, 3), keepdim=True),
            "mul": lambda: y * x,
        }
        return ACTIVATIONS[act](forms[form]())

    return f"residual {form} kernel {kernel} {act}", Step(function, layer=layer, norm=norm), shape


def transposed(draw: Draw, shape: Shape) -> Made:
    kernel, stride, dilation = _pair(draw, 1, 5), _pair(draw, 1, 4), draw(st.integers(1, 2))
    padding = tuple(draw(st.integers(0, (k - 1) * dilation)) for k in kernel)
    extra = tuple(draw(st.integers(0, max(s, dilation) - 1)) for s in stride)
    groups = draw(st.sampled_from([g for g in (1, 2) if shape.channels % g == 0]))
    channels = groups * draw(st.integers(1, 3))
    out = [
        (n - 1) * s - 2 * p + dilation * (k - 1) + e + 1
        for n, k, s, p, e in zip(shape.size, kernel, stride, padding, extra, strict=True)
    ]
    if min(out) < 1:
        return None
    layer = nn.ConvTranspose2d(
        shape.channels, channels, kernel, stride, padding, extra, groups, draw(st.booleans()), dilation
    )
    norm = nn.BatchNorm2d(channels) if draw(st.booleans()) else nn.Identity()
    text = f"transposed conv kernel {kernel} stride {stride} pad {padding} extra {extra}"
    text += f" dilation {dilation} groups {groups}"
    return text, Step(lambda x, layer, norm: norm(layer(x)), layer=layer, norm=norm), Shape(channels, *out)


def pool(draw: Draw, shape: Shape) -> Made:
    kernel = _pair(draw, 1, 5)
    stride, kind, ceil = _pair(draw, 1, 4), draw(st.sampled_from(("max", "avg", "lp"))), draw(st.booleans())
    padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    if kind == "max":
        dilation = draw(st.integers(1, 2))
        layer: nn.Module = nn.MaxPool2d(kernel, stride, padding, dilation, ceil_mode=ceil)
    elif kind == "avg":
        layer = nn.AvgPool2d(kernel, stride, padding, ceil, draw(st.booleans()), draw(st.sampled_from((None, 3))))
    else:
        layer = nn.LPPool2d(2, kernel, stride, ceil)
        return _tried(str(layer), Step(lambda x, layer: layer(x.abs() + 0.1), layer=layer), shape)
    return _tried(str(layer), Step(lambda x, layer: layer(x), layer=layer), shape)


def _tried(text: str, step: Step, shape: Shape) -> Made:
    """The step with the shape that torch finds; nothing where torch refuses."""
    try:
        out = step(torch.zeros(1, shape.channels, *shape.size))
    except RuntimeError:
        return None
    return (text, step, Shape(*out.shape[1:])) if min(out.shape) else None


def adaptive(draw: Draw, shape: Shape) -> Made:
    size = _pair(draw, 1, 9)
    layer = nn.AdaptiveAvgPool2d(size) if draw(st.booleans()) else nn.AdaptiveMaxPool2d(size)
    return str(layer), Step(lambda x, layer: layer(x), layer=layer), Shape(shape.channels, *size)


def resize(draw: Draw, shape: Shape) -> Made:
    mode = draw(st.sampled_from(("nearest", "nearest-exact", "bilinear", "bicubic")))
    smooth = mode.startswith("bi")
    options: dict[str, Any] = {"mode": mode}
    if smooth:
        options["align_corners"] = draw(st.booleans())
        options["antialias"] = draw(st.booleans())
    if draw(st.booleans()):
        options["size"] = _pair(draw, SMALLEST, 30)
    else:
        factor = draw(st.sampled_from((0.3, 0.5, 0.77, 1.04, 1.5, 2, 2.3, 3)))
        options["scale_factor"] = factor if draw(st.booleans()) else (factor, draw(st.sampled_from((0.6, 1.0, 2.0))))
        if draw(st.booleans()):
            options["recompute_scale_factor"] = True
    if options.get("antialias") and shape.columns == 1:
        return None  # torch's own answer is wrong there and depends on the memory format (seen in 2.15)
    return _tried(f"resize {options}", Step(lambda x: F.interpolate(x, **options)), shape)


def shuffle(draw: Draw, shape: Shape) -> Made:
    kind = draw(st.sampled_from(("pixel", "unpixel", "channel", "view")))
    factor = draw(st.sampled_from((2, 3)))
    if kind == "pixel":
        widen = nn.Conv2d(shape.channels, 2 * factor * factor, 1)
        step = Step(lambda x, widen: F.pixel_shuffle(widen(x), factor), widen=widen)
        return f"pixel shuffle {factor}", step, Shape(2, shape.rows * factor, shape.columns * factor)
    if kind == "unpixel":
        return _tried(f"pixel unshuffle {factor}", Step(lambda x: F.pixel_unshuffle(x, factor)), shape)
    if shape.channels % 2:
        return None
    if kind == "channel":
        return "channel shuffle", Step(lambda x: F.channel_shuffle(x, 2)), shape

    def viewed(x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        return x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)

    return "view shuffle", Step(viewed), shape


def squeeze_excite(draw: Draw, shape: Shape) -> Made:
    narrow, wide = nn.Conv2d(shape.channels, 2, 1), nn.Conv2d(2, shape.channels, 1)
    form = draw(st.sampled_from(("mean", "amax", "adaptive", "sum", "amin", "global_max")))
    squeezes = {
        "mean": lambda x: x.mean((2, 3), keepdim=True),
        "amax": lambda x: x.amax((2, 3), keepdim=True),
        "adaptive": lambda x: F.adaptive_avg_pool2d(x, 1),
        "sum": lambda x: x.sum((2, 3), keepdim=True) * 0.01,
        "amin": lambda x: x.amin((2, 3))[:, :, None, None],
        "global_max": lambda x: F.adaptive_max_pool2d(x, 1),
    }

    def function(x: Tensor, narrow: nn.Module, wide: nn.Module) -> Tensor:
        return x * torch.sigmoid(wide(F.relu(narrow(squeezes[form](x)))))

    return f"squeeze-excite {form}", Step(function, narrow=narrow, wide=wide), shape


def part(draw: Draw, shape: Shape) -> Made:
    """Slices, stepped too, along any dimension of the map; a shift by roll or pad; halves exchanged."""
    kind = draw(st.sampled_from(("rows", "columns", "channels", "halves", "roll", "pad", "stack", "mirror", "select")))
    step, start = draw(st.integers(1, 3)), draw(st.integers(0, 2))
    mode = draw(st.sampled_from(("constant", "reflect", "replicate", "circular")))
    pads = [draw(st.integers(0, 3)) for _ in range(4)]
    forms: dict[str, Callable[[Tensor], Tensor]] = {
        "rows": lambda x: x[:, :, start::step],
        "columns": lambda x: x[..., start : x.shape[-1] - 1 : step],
        "channels": lambda x: x[:, start % x.shape[1] :: step],
        "halves": lambda x: torch.cat(x.chunk(2, 1)[::-1], 1),
        "roll": lambda x: torch.roll(x, (1, 2), (2, 3)),
        "pad": lambda x: F.pad(x, pads, mode, *([0.5] if mode == "constant" else [])),
        "stack": lambda x: torch.stack([x, x * 2], 2).flatten(1, 2),
        "mirror": lambda x: torch.cat([x, x * 0.5], 2),
        "select": lambda x: torch.stack([x[:, 0], x[:, -1]], 1),
    }
    return _tried(f"{kind} {start}::{step} {mode} {pads}", Step(forms[kind]), shape)


def normalised(draw: Draw, shape: Shape) -> Made:
    # A large eps: normalising a saturated, constant map by 1e-5 would magnify rounding 300 times.
    kind = draw(st.sampled_from(("group", "instance", "local", "layer", "batch")))
    groups = draw(st.sampled_from([g for g in (1, 2, 3) if shape.channels % g == 0]))
    layers: dict[str, Callable[[], nn.Module]] = {
        "group": lambda: nn.GroupNorm(groups, shape.channels, eps=0.1),
        "instance": lambda: nn.InstanceNorm2d(shape.channels, eps=0.1, affine=True),
        "local": lambda: nn.LocalResponseNorm(3),
        "layer": lambda: nn.LayerNorm(shape.channels),
        "batch": lambda: nn.BatchNorm2d(shape.channels),
    }
    layer = layers[kind]()
    if kind == "layer":
        step = Step(lambda x, layer: layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), layer=layer)
    else:
        step = Step(lambda x, layer: layer(x), layer=layer)
    return (f"{kind} norm", step, shape) if kind != "instance" or math.prod(shape.size) > 1 else None


def activated(draw: Draw, shape: Shape) -> Made:
    if draw(st.integers(0, 3)) == 0:
        layer = nn.PReLU(draw(st.sampled_from((1, shape.channels))))
        return f"prelu {layer.num_parameters}", Step(lambda x, layer: layer(x), layer=layer), shape
    name = draw(st.sampled_from(sorted(ACTIVATIONS)))
    return name, Step(ACTIVATIONS[name]), shape


def join(draw: Draw, shape: Shape) -> Made:
    return None


def _joined(draw: Draw, shapes: list[Shape], read: int) -> tuple[Made, tuple[int, ...]]:
    """With an earlier map of the same size: concatenation, or arithmetic where the channels agree too."""
    first = shapes[read]
    others = [index for index, shape in enumerate(shapes) if shape.size == first.size]
    other = draw(st.sampled_from(others))
    kinds = ["cat", "cat_columns"] if shapes[other].channels == first.channels else ["cat"]
    if shapes[other].channels == first.channels:
        kinds += ["add", "mul", "sub", "maximum"]
    kind = draw(st.sampled_from(kinds))
    forms: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "cat": lambda x, y: torch.cat([x, y], 1),
        "cat_columns": lambda x, y: torch.cat([y, x], 3),
        "add": torch.add,
        "mul": torch.mul,
        "sub": lambda x, y: torch.sub(x, y, alpha=0.5),
        "maximum": torch.maximum,
    }
    out = {
        "cat": Shape(first.channels + shapes[other].channels, *first.size),
        "cat_columns": Shape(first.channels, first.rows, 2 * first.columns),
    }.get(kind, first)
    return (f"{kind}", Step(forms[kind]), out), (other,)


KINDS: dict[str, Callable[[Draw, Shape], Made]] = {
    "conv": conv, "conv_again": conv, "conv_more": conv, "same_conv": same_conv, "residual": residual,
    "transposed": transposed, "pool": pool, "pool_again": pool, "adaptive": adaptive, "resize": resize,
    "shuffle": shuffle, "squeeze_excite": squeeze_excite, "part": part, "normalised": normalised,
    "activated": activated, "join": join,
}  # fmt: skip
