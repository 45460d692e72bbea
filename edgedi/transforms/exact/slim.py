"""Take the channels that nobody needs out of the modules: their weights, and the numbers that describe them."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from edgedi.transforms.exact.facts import Array
from edgedi.transforms.exact.flow import Flow, Weights
from edgedi.transforms.exact.identities import put
from edgedi.transforms.exact.weights import array_of


def slim(flow: Flow) -> None:
    """Change the layers that ``flow`` followed, in place."""
    keep = flow.kept()
    for layer, weights in flow.weights.items():
        inputs = keep[flow.values[layer.source].members]
        outputs = keep[flow.values[layer.output].members]
        if inputs.all() and outputs.all():
            continue
        if isinstance(layer.module, _BatchNorm):
            _slim_norm(layer.module, inputs)
        else:
            _slim_layer(layer.module, weights, inputs, outputs)


def _slim_norm(norm: Any, keep: Array) -> None:
    for name in ("running_mean", "running_var"):
        setattr(norm, name, getattr(norm, name)[keep].clone())
    if norm.affine:
        put(norm, array_of(norm.weight)[keep], array_of(norm.bias)[keep])
    norm.num_features = int(keep.sum())


def _slim_layer(module: Any, weights: Weights, inputs: Array, outputs: Array) -> None:
    if inputs.all():  # all is there that it ever read: its own weights will do
        weight, bias = array_of(module.weight), None if module.bias is None else array_of(module.bias)
    else:
        weight, bias = weights.weight, weights.bias
    groups = weights.groups
    if groups == 1:
        weight = weight[:, inputs]
    else:
        groups = int(inputs.sum()) // weight.shape[1]
    put(module, weight[outputs], None if bias is None else bias[outputs])
    num_inputs, num_outputs = int(inputs.sum()), int(outputs.sum())
    if isinstance(module, nn.Linear):
        module.in_features, module.out_features = num_inputs, num_outputs
    else:
        module.in_channels, module.out_channels, module.groups = num_inputs, num_outputs, groups
