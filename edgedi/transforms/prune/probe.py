"""What a change of some layers does to the answer, tried out: it makes errors of different layers comparable."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

INPUTS = 24
"""Inputs that a change is tried on."""


class Probe:
    """``change(weights)``: the answers' squared change over their variance, if layers had these weights."""

    @torch.no_grad()
    def __init__(self, model: nn.Module, arguments: tuple[Any, ...]) -> None:
        self._model = copy.deepcopy(model)
        self._arguments = pytree.tree_map(lambda leaf: leaf[:INPUTS] if isinstance(leaf, Tensor) else leaf, arguments)
        self._answer = self._leaves()
        self._variance = sum(float((leaf - leaf.mean()).square().sum()) for leaf in self._answer)

    @torch.no_grad()
    def change(self, weights: Mapping[str, tuple[Tensor, Tensor | None]]) -> float:
        """``weights``: of layers by name, the weight in any shape and what is added to the bias, if there is one."""
        before = {name: copy.deepcopy(self._model.get_submodule(name).state_dict()) for name in weights}
        for name, (weight, lift) in weights.items():
            module = self._model.get_submodule(name)
            module.weight.copy_(weight.reshape(module.weight.shape))
            if module.bias is not None and lift is not None:
                module.bias.add_(lift.flatten())
        answer = self._leaves()
        for name, state in before.items():
            self._model.get_submodule(name).load_state_dict(state)
        squares = (float((a - b).square().sum()) for a, b in zip(answer, self._answer, strict=True))
        return sum(squares) / max(self._variance, 1e-30)

    def _leaves(self) -> list[Tensor]:
        leaves = pytree.tree_leaves(self._model(*self._arguments))
        return [leaf.double() for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]
