"""Layers that are not needed: normalisations that the layer before can do, and what hands its input on."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from edgedi.transforms.exact.facts import Array
from edgedi.transforms.exact.traced import Layer, Traced, shape_of
from edgedi.transforms.exact.weights import array_of, scale_and_shift


def fold_norms(traced: Traced) -> Traced:
    """Batch normalisations into the convolution or linear layer that alone feeds them, computed in float64.

    Not into a layer that follows: where it pads, it would see the padding without the normalisation.
    """
    for norm in [layer for layer in traced.layers if isinstance(layer.module, _BatchNorm) and layer.plain]:
        before = next((layer for layer in traced.layers if layer.output is norm.source), None)
        if before is not None and len(before.output.users) == 1 and _is_mixing(before):
            _fold(before.module, *scale_and_shift(norm.module))
            traced = _leave_out(traced, norm)
    return traced


def drop_identities(traced: Traced) -> Traced:
    """Layers whose output is their input, and dropouts: in evaluation mode they do nothing."""
    for layer in traced.layers:
        if layer.plain and _is_identity(layer.module):
            traced = _leave_out(traced, layer)
    for name, module in list(traced.model.named_modules()):
        if name and isinstance(module, _DropoutNd) and type(module).__module__ == _DropoutNd.__module__:
            _replace(traced.model, name)
    return traced


def _leave_out(traced: Traced, layer: Layer) -> Traced:
    _replace(traced.model, layer.name)
    return traced.without(layer)


def _replace(model: nn.Module, name: str) -> None:
    model.set_submodule(name, nn.Identity().eval())


def _is_mixing(layer: Layer) -> bool:
    """Whether the channels of its output, in dimension 1, are its outputs: no linear layer over the last of three."""
    shape = shape_of(layer.output) or ()
    return not isinstance(layer.module, _BatchNorm) and len(shape) == layer.module.weight.dim()


def _fold(module: Any, scale: Array, shift: Array) -> None:
    weight = array_of(module.weight).astype(np.float64)
    bias = 0.0 if module.bias is None else array_of(module.bias)
    put(module, weight * scale.reshape(-1, *[1] * (weight.ndim - 1)), bias * scale + shift)


def put(module: Any, weight: Array, bias: Array | None) -> None:
    """New weights for a layer, where the old ones were and in their dtype."""
    old = module.weight

    def parameter(values: Array) -> nn.Parameter:
        made = torch.from_numpy(np.ascontiguousarray(values)).to(device=old.device, dtype=old.dtype, copy=True)
        return nn.Parameter(made, requires_grad=old.requires_grad)

    module.weight = parameter(weight)
    module.bias = None if bias is None else parameter(bias)


def _is_identity(module: Any) -> bool:
    if isinstance(module, _BatchNorm):
        scale, shift = scale_and_shift(module)
        return bool((scale == 1).all() and (shift == 0).all())
    weight = array_of(module.weight)
    if len(weight) != weight.shape[1] * getattr(module, "groups", 1) or (module.bias is not None and module.bias.any()):
        return False
    return _keeps_positions(module) and bool((weight.reshape(weight.shape[:2]) == _unit(weight)).all())


def _keeps_positions(module: Any) -> bool:
    if isinstance(module, nn.Linear):
        return True
    ones = set(module.kernel_size) | set(module.stride)
    return ones == {1} and module.padding in ("valid", "same", (0,) * len(module.stride))


def _unit(weight: Array) -> Array:
    """The weights [outputs, inputs of a group] that hand every channel on."""
    per_group = weight.shape[1]
    return np.arange(len(weight))[:, None] % per_group == np.arange(per_group)
