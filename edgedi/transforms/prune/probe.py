"""What a change of some layers does to the answer, tried out: it makes errors of different layers comparable."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from edgedi.transforms.data import maps_channels_last, takes_channels_last
from edgedi.transforms.prune.cut import layers_of
from edgedi.transforms.prune.watch import Call, Watch

INPUTS = 24
"""Inputs that a change is tried on."""
MEMORY_BYTES = 2**30
"""For outputs of layers, kept so that what runs before a changed layer is not computed again; the first that fit."""


class Probe:
    """``change(weights)``: the answers' squared change over their variance, if layers had these weights."""

    @torch.no_grad()
    def __init__(self, model: nn.Module, arguments: tuple[Any, ...]) -> None:
        self._model = copy.deepcopy(model)
        self._arguments = pytree.tree_map(_some, arguments)
        if takes_channels_last(self._model, self._arguments):
            self._arguments = pytree.tree_map(maps_channels_last, self._arguments)
        self._layers = layers_of(model)
        self._kept: list[tuple[str, Tensor | None]] = []
        """Each call of a layer, in order, and its output."""
        room = MEMORY_BYTES

        def keep(call: Call) -> Tensor:
            nonlocal room
            output = call.run()
            room -= output.nbytes
            # A copy, here and each time it is used: what comes next may write into it.
            self._kept.append((call.name, output.clone() if room >= 0 else None))
            return output

        self._answer = self._leaves(keep)
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
        answer = self._leaves(self._replay(set(weights)))
        for name, state in before.items():
            self._model.get_submodule(name).load_state_dict(state)
        squares = (float((a - b).square().sum()) for a, b in zip(answer, self._answer, strict=True))
        return sum(squares) / max(self._variance, 1e-30)

    def _replay(self, changed: set[str]) -> Callable[[Call], Tensor]:
        """The outputs that are kept, up to the first changed layer; none where one of these was never seen to run."""
        kept, same = iter(self._kept), changed <= {name for name, _ in self._kept}

        def see(call: Call) -> Tensor:
            nonlocal same
            same = same and call.name not in changed
            output = next(kept, (call.name, None))[1] if same else None
            return call.run() if output is None else output.clone()

        return see

    def _leaves(self, see: Callable[[Call], Tensor]) -> list[Tensor]:
        with Watch(self._model, self._layers, see):
            leaves = pytree.tree_leaves(self._model(*self._arguments))
        return [leaf.double() for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _some(leaf: Any) -> Any:
    """The first ``INPUTS`` of a tensor."""
    return leaf[:INPUTS] if isinstance(leaf, Tensor) else leaf
