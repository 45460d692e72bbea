"""One walk through a traced model: what is known of each channel, and which channels hang together.

``Flow`` holds the state of the walk, ``follow`` walks. The operators are in ``rules``, the layers with weights in
``weights``. An operator that no rule knows keeps all of its inputs' channels, and of its output nothing is known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgedi.transforms.exact.facts import Array, Channels, Groups, Ids, settled
from edgedi.transforms.exact.traced import Layer, Traced, shape_of


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Weights:
    """A layer's weights, as they may be while the channels of its input are what they are."""

    weight: Array
    """[outputs, inputs of a group, *kernel]; of a normalisation, its scale [channels]."""
    bias: Array | None
    groups: int = 1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Link:
    """A layer that mixes all of its inputs: input i is needed by output o where ``reads[o, i]``."""

    inputs: Array
    outputs: Array
    reads: Array


@dataclass(kw_only=True, eq=False)
class Flow:
    """What the walk has found so far. ``rigid``: reshapes and splits along channels keep every channel."""

    rigid: bool = False
    values: dict[Any, Channels] = field(default_factory=dict)
    weights: dict[Layer, Weights] = field(default_factory=dict)
    links: list[Link] = field(default_factory=list)
    pinned: list[Array] = field(default_factory=list)
    known: Ids = field(default_factory=Ids)
    groups: Groups = field(default_factory=Groups)

    def pin(self, channels: Channels) -> None:
        """These channels stay, whoever reads them."""
        self.pinned.append(channels.members)

    def unknown(self, count: int) -> Channels:
        """Channels of which nothing is known, on their own."""
        infinite = np.full(count, np.inf)
        return Channels(low=-infinite, high=infinite, ids=self.known.fresh(count), members=self.groups.add(count))

    def constants(self, count: int, value: float) -> Channels:
        """Channels that are ``value`` everywhere."""
        ends = np.full(count, value)
        return settled(ends, ends, self.known.fresh(count), self.groups.add(count), self.known)

    def fixed(self, node: Any) -> Channels | None:
        """The output of ``node`` as one that nobody can change; ``None`` where it has no channels."""
        shape = shape_of(node)
        if shape is None or len(shape) < 2:
            return None
        made = self.unknown(shape[1])
        self.pin(made)
        return made

    def named(self, operator: tuple[Any, ...], *operands: Array) -> Array:
        """Ids of what ``operator`` makes of each channel of its operands."""
        name = self.known.of(operator)
        return np.array([self.known.of((name, *ids)) for ids in zip(*(o.tolist() for o in operands), strict=True)])

    def kept(self) -> Array:
        """For each number in ``groups``: whether some output of the model depends on a channel that goes with it."""
        roots = self.groups.roots(np.arange(len(self.groups)))
        keep = np.zeros(len(roots), dtype=bool)
        for members in self.pinned:
            keep[roots[members]] = True
        narrow = [roots[value.members] for value in self.values.values() if len(value)]
        changed = True
        while changed:
            self._demand(keep, roots)
            changed = False
            for value in narrow:
                if not keep[value].any():  # a value without channels is no tensor that every operator takes
                    keep[value[0]] = changed = True
        return keep[roots]

    def _demand(self, keep: Array, roots: Array) -> None:
        changed = True
        while changed:
            before = keep.sum()
            for link in reversed(self.links):
                needed = link.reads[keep[roots[link.outputs]]].any(axis=0)
                keep[roots[link.inputs[needed]]] = True
            changed = bool(keep.sum() > before)


Rule = Callable[[Flow, Any], Channels | None]
LayerRule = Callable[[Flow, Layer, Channels], Channels | None]


def follow(traced: Traced, rules: Mapping[str, Rule], layer_rule: LayerRule, *, rigid: bool = False) -> Flow:
    """Walk ``traced`` in order. ``rules`` by the operator's printed name, ``layer_rule`` for what has weights."""
    flow = Flow(rigid=rigid)
    layers = {layer.node: layer for layer in traced.layers}
    outputs = {layer.output for layer in traced.layers}
    for node in traced.graph.nodes:
        if node.op == "placeholder" and node not in traced.state_nodes:
            _set(flow, node, flow.fixed(node))
        elif node.op == "output":
            _pin_inputs(flow, node)
        elif node in layers:
            _layer(flow, layers[node], layer_rule)
        elif node.op == "call_function" and node not in outputs and node.users:
            rule = rules.get(str(node.target))
            _set(flow, node, (rule(flow, node) if rule else None) or _opaque(flow, node))
    return flow


def _layer(flow: Flow, layer: Layer, rule: LayerRule) -> None:
    source = flow.values.get(layer.source)
    made = rule(flow, layer, source) if source is not None else None
    _set(flow, layer.output, made or _opaque(flow, layer.node, layer.output))


def _opaque(flow: Flow, node: Any, output: Any = None) -> Channels | None:
    _pin_inputs(flow, node)
    return flow.fixed(output or node)


def _pin_inputs(flow: Flow, node: Any) -> None:
    for source in node.all_input_nodes:
        if source in flow.values:
            flow.pin(flow.values[source])


def _set(flow: Flow, node: Any, channels: Channels | None) -> None:
    if channels is not None:
        flow.values[node] = channels
