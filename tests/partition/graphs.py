"""Small networks as LayerGraphs, built by hand: no torch needed to test what only decides."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from edgedi.partition.cost.profile import ClusterProfile, LinkProfile
from edgedi.partition.graph.graph import Layer, LayerGraph, TensorSpec


class Builder:
    """Adds layers one after another; every method returns the name of the tensor that it made."""

    def __init__(self, *shape: int) -> None:
        self._inputs = {"x": TensorSpec(shape)}
        self._shapes: dict[str, tuple[int, ...]] = {"x": shape}
        self._layers: list[Layer] = []
        self._weights: dict[str, TensorSpec] = {}

    def shape(self, tensor: str) -> tuple[int, ...]:
        return self._shapes[tensor]

    def graph(self, *outputs: str) -> LayerGraph:
        return LayerGraph(inputs=self._inputs, layers=tuple(self._layers), outputs=outputs, weights=self._weights)

    def add(
        self, op: str, inputs: tuple[str, ...], shape: tuple[int, ...], *, name: str = "", **attributes: Any
    ) -> str:
        name = name or f"{op}{len(self._layers)}"
        weights = {}
        for role, spec in attributes.pop("weights", {}).items():
            weights[role] = f"{name}.{role}"
            self._weights[weights[role]] = TensorSpec(spec)
        self._layers.append(
            Layer(name=name, op=op, inputs=inputs, spec=TensorSpec(shape), attributes=attributes, weights=weights)
        )
        self._shapes[name] = shape
        return name

    def conv(
        self,
        x: str,
        channels: int,
        kernel: int = 3,
        *,
        stride: int = 1,
        pad: int | None = None,
        pad_after: int | None = None,
        dilation: int = 1,
        groups: int = 1,
        plus: str | None = None,
        name: str = "",
    ) -> str:
        batch, inputs, rows, columns = self._shapes[x]
        before = (kernel - 1) * dilation // 2 if pad is None else pad
        after = before if pad_after is None else pad_after
        out = [_windows(n, kernel, stride, before, after, dilation) for n in (rows, columns)]
        return self.add(
            "conv",
            (x,) if plus is None else (x, plus),
            (batch, channels, *out),
            name=name,
            kernel=(kernel, kernel),
            stride=(stride, stride),
            pad_before=(before, before),
            pad_after=(after, after),
            dilation=(dilation, dilation),
            groups=groups,
            weights={"weight": (channels, inputs // groups, kernel, kernel)},
        )

    def max_pool(self, x: str, kernel: int = 2, stride: int | None = None, pad: int = 0) -> str:
        batch, channels, rows, columns = self._shapes[x]
        step = stride or kernel
        out = [_windows(n, kernel, step, pad, pad, 1) for n in (rows, columns)]
        return self.add(
            "max_pool",
            (x,),
            (batch, channels, *out),
            kernel=(kernel, kernel),
            stride=(step, step),
            pad_before=(pad, pad),
            pad_after=(pad, pad),
            dilation=(1, 1),
        )

    def unary(self, x: str, kind: str = "relu") -> str:
        return self.add("unary", (x,), self._shapes[x], kind=kind)

    def binary(self, x: str, y: str, kind: str = "add") -> str:
        shape = tuple(max(a, b) for a, b in zip(self._shapes[x], self._shapes[y], strict=True))
        return self.add("binary", (x, y), shape, kind=kind)

    def cat(self, *tensors: str, dim: int = 1) -> str:
        shape = list(self._shapes[tensors[0]])
        shape[dim] = sum(self._shapes[t][dim] for t in tensors)
        return self.add("cat", tensors, tuple(shape), dim=dim)

    def mean(self, x: str) -> str:
        """Global average pooling by parts: a partial sum over the map, then their combination."""
        batch, channels, _, _ = self._shapes[x]
        parts = self.add("partial", (x,), (1, batch, channels, 1, 1), dims=(2, 3), function="sum")
        return self.add(
            "combine",
            (parts,),
            (batch, channels, 1, 1),
            function="sum",
            scale=1 / (self._shapes[x][2] * self._shapes[x][3]),
        )

    def flatten(self, x: str) -> str:
        batch, *rest = self._shapes[x]
        size = 1
        for n in rest:
            size *= n
        return self.add("reshape", (x,), (batch, size))

    def linear(self, x: str, channels: int) -> str:
        shape = self._shapes[x]
        weights = {"weight": (channels, shape[-1])}
        return self.add("linear", (x,), (*shape[:-1], channels), weights=weights)

    def resize(self, x: str, rows: int, columns: int) -> str:
        batch, channels, _, _ = self._shapes[x]
        return self.add("resize", (x,), (batch, channels, rows, columns), mode="bilinear", align_corners=False)

    def opaque(self, x: str) -> str:
        return self.add("opaque", (x,), self._shapes[x], target="custom")


def _windows(length: int, kernel: int, stride: int, before: int, after: int, dilation: int) -> int:
    return (length + before + after - dilation * (kernel - 1) - 1) // stride + 1


def chain(rows: int = 16, channels: int = 4, depth: int = 3) -> LayerGraph:
    """Convolutions in a row, a pool, a linear head."""
    b = Builder(1, 3, rows, rows)
    x = "x"
    for _ in range(depth):
        x = b.unary(b.conv(x, channels))
    return b.graph(b.linear(b.flatten(b.max_pool(x)), 5))


def residual(rows: int = 16, channels: int = 8) -> LayerGraph:
    """A strided stem, a residual block with squeeze-excite, global pooling and a linear head."""
    b = Builder(1, 3, rows, rows)
    stem = b.conv("x", channels, stride=2)
    branch = b.conv(b.unary(b.conv(stem, channels)), channels)
    gate = b.unary(b.conv(b.unary(b.conv(b.mean(branch), 2, 1)), channels, 1), "sigmoid")
    joined = b.unary(b.binary(b.binary(branch, gate, "mul"), stem))
    return b.graph(b.linear(b.flatten(b.mean(joined)), 5))


def concat(rows: int = 15, channels: int = 4) -> LayerGraph:
    """Two branches of unequal depth, put together along the channels; two outputs."""
    b = Builder(1, 3, rows, rows + 2)
    stem = b.unary(b.conv("x", channels))
    joined = b.cat(b.conv(stem, channels, 1), b.conv(b.conv(stem, channels), channels, 5))
    last = b.conv(joined, channels)
    return b.graph(last, stem)


def with_opaque(rows: int = 12) -> LayerGraph:
    """Convolutions around an operator that only the coordinator knows."""
    b = Builder(1, 3, rows, rows)
    return b.graph(b.conv(b.opaque(b.conv("x", 4)), 4))


def resnet50(size: int = 224, blocks: tuple[int, ...] = (3, 4, 6, 3)) -> LayerGraph:
    """ResNet's bottleneck form, activations and residual adds fused into the convolutions."""
    b = Builder(1, 3, size, size)
    x = b.max_pool(b.conv("x", 64, 7, stride=2), 3, 2, pad=1)
    for stage, count in enumerate(blocks):
        width = 64 * 2 ** min(stage, 3)
        for block in range(count):
            stride = 2 if stage and not block else 1
            skip = b.conv(x, width * 4, 1, stride=stride) if not block else x
            inner = b.conv(b.conv(x, width, 1), width, 3, stride=stride)
            x = b.conv(inner, width * 4, 1, plus=skip)
    return b.graph(b.linear(b.flatten(b.mean(x)), 1000))


def vgg16(size: int = 224) -> LayerGraph:
    """VGG-16 with activations fused into the convolutions."""
    b = Builder(1, 3, size, size)
    x = "x"
    for channels, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(count):
            x = b.conv(x, channels)
        x = b.max_pool(x)
    x = b.linear(b.linear(b.flatten(x), 4096), 4096)
    return b.graph(b.linear(x, 1000))


# --- random graphs and clusters --------------------------------------------------------------------------------------


def _random_conv(b: Builder, x: str, draw: st.DrawFn) -> str:
    kernel = draw(st.integers(1, 5))
    channels = draw(st.sampled_from((2, 4, 6)))
    stride = draw(st.integers(1, 3)) if min(b.shape(x)[2:]) > 6 else 1
    dilation = draw(st.integers(1, 2)) if kernel > 1 else 1
    before, after = draw(st.integers(0, kernel)), draw(st.integers(0, kernel))
    groups = draw(st.sampled_from((1, 2)))
    if min(b.shape(x)[2:]) + before + after <= dilation * (kernel - 1):
        return x
    return b.conv(x, channels, kernel, stride=stride, pad=before, pad_after=after, dilation=dilation, groups=groups)


def _random_residual(b: Builder, x: str, draw: st.DrawFn) -> str:
    branch = b.conv(b.conv(x, b.shape(x)[1], draw(st.sampled_from((1, 3)))), b.shape(x)[1], 3)
    return b.binary(branch, x)


def _random_concat(b: Builder, x: str, draw: st.DrawFn) -> str:
    return b.cat(b.conv(x, 2, 1), b.conv(x, 4, draw(st.sampled_from((3, 5)))), x)


def _random_gate(b: Builder, x: str, draw: st.DrawFn) -> str:
    return b.binary(x, b.unary(b.conv(b.mean(x), b.shape(x)[1], 1), "sigmoid"), "mul")


def _random_pool(b: Builder, x: str, draw: st.DrawFn) -> str:
    return b.max_pool(x, draw(st.integers(2, 3)), draw(st.integers(1, 3))) if min(b.shape(x)[2:]) > 6 else x


def _random_resize(b: Builder, x: str, draw: st.DrawFn) -> str:
    rows, columns = b.shape(x)[2:]
    return b.resize(x, draw(st.integers(1, 2)) * rows + draw(st.integers(0, 3)), columns)


def _random_opaque(b: Builder, x: str, draw: st.DrawFn) -> str:
    return b.opaque(x)


_RANDOM: tuple[Callable[[Builder, str, st.DrawFn], str], ...] = (
    _random_conv,
    _random_conv,
    _random_conv,
    _random_residual,
    _random_concat,
    _random_gate,
    _random_pool,
    _random_resize,
    _random_opaque,
)


@st.composite
def graphs(draw: st.DrawFn, *, max_steps: int = 5, max_size: int = 24, opaque: bool = True) -> LayerGraph:
    """Random networks of every operator family that decides how a map is split; at least one layer."""
    shape = (draw(st.integers(1, 2)), draw(st.sampled_from((2, 4))), *(draw(st.integers(5, max_size)) for _ in "hw"))
    b = Builder(*shape)
    x = b.conv("x", 4, 3)
    made = [x]
    for step in draw(st.lists(st.sampled_from(_RANDOM if opaque else _RANDOM[:-1]), max_size=max_steps)):
        x = step(b, x, draw)
        made.append(x)
    if draw(st.booleans()):
        x = b.linear(b.flatten(b.mean(x)), 6)
    return b.graph(*dict.fromkeys((x, draw(st.sampled_from(made)))))


@st.composite
def clusters(draw: st.DrawFn, *, max_workers: int = 4) -> ClusterProfile:
    """Unequal devices, which take a network alone in less than its layers or not; unequal links, from free messages to
    dear ones."""
    num_workers = draw(st.integers(1, max_workers))
    cluster = ClusterProfile.uniform(
        num_workers,
        flops_per_s=draw(st.sampled_from((1e7, 1e8, 1e9))),
        seconds_per_layer=draw(st.sampled_from((0.0, 1e-6))),
        latency_s=draw(st.sampled_from((0.0, 1e-5, 1e-3))),
        bytes_per_s=draw(st.sampled_from((1e6, 1e8, 1e10))),
        message_cpu_s=draw(st.sampled_from((0.0, 1e-6))),
    ).with_speeds([draw(st.sampled_from((1.0, 1.5, 4.0))) for _ in range(num_workers)])
    alone = draw(st.sampled_from((1.0, 0.8)))
    cluster = replace(cluster, devices=tuple(replace(device, alone_share=alone) for device in cluster.devices))
    slow = LinkProfile(latency_s=1e-4, bytes_per_s=1e6, message_cpu_s=1e-6)
    ends = draw(st.lists(st.tuples(st.integers(-1, num_workers - 1), st.integers(-1, num_workers - 1)), max_size=3))
    return cluster.with_links({(s, t): slow for s, t in ends if s != t})
