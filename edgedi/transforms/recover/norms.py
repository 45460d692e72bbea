"""Batch normalisations while a network is trained: put back where the exact step folded them, and folded again."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from edgedi.transforms.data import Batch
from edgedi.transforms.exact.identities import fold_norms
from edgedi.transforms.exact.traced import trace


def norms_of(model: nn.Module) -> dict[str, Any]:
    """Its batch normalisations, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm)}


def put_back(student: nn.Module, original: nn.Module, batches: Sequence[Batch]) -> bool:
    """Normalise again, in place, where ``original`` does and ``student`` hands its input on; whether that was anywhere.

    Their statistics are those of ``batches``, scale and shift undo them: the answers stay what they are. Only where
    ``fold`` takes them out again, and leaves weights of the names that there are now.
    """
    names = student.state_dict().keys()
    norms = _fitting(student, [name for name in norms_of(original) if _hands_on(student, name)], batches)
    _place(student, norms)
    if not norms:
        return False
    folded = copy.deepcopy(student)
    fold(folded, batches[0].arguments)
    left = norms.keys() & norms_of(folded).keys()
    _place(folded, dict.fromkeys(left, nn.Identity()))
    if folded.state_dict().keys() != names:
        left = set(norms)
    _place(student, {name: nn.Identity().eval() for name in left})
    return left != set(norms)


def fold(student: nn.Module, arguments: tuple[Any, ...]) -> None:
    """In place: the opposite of ``put_back``."""
    fold_norms(trace(student, arguments))


def _fitting(student: nn.Module, places: Sequence[str], batches: Sequence[Batch]) -> dict[str, nn.Module]:
    """For each place a normalisation that changes nothing now; none where nothing passes."""
    seen = {name: _Moments() for name in places}
    hooks = [student.get_submodule(name).register_forward_hook(moments.hook) for name, moments in seen.items()]
    try:
        with torch.no_grad():
            for batch in batches:
                student(*batch.arguments)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: moments.norm() for name, moments in seen.items() if moments.count > 1}


def _place(model: nn.Module, modules: Mapping[str, nn.Module]) -> None:
    for name, module in modules.items():
        model.set_submodule(name, module)


def _hands_on(model: nn.Module, name: str) -> bool:
    try:
        return type(model.get_submodule(name)) is nn.Identity
    except AttributeError:
        return False


_KINDS: Mapping[int, type[nn.Module]] = {
    2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d
}  # fmt: skip


class _Moments:
    """Sums over all that passed a place, channel by channel."""

    def __init__(self) -> None:
        self.count, self.last = 0, torch.empty(0)
        self.sum = self.squares = torch.zeros((), dtype=torch.float64)

    def hook(self, module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        if output.dim() not in _KINDS:
            return
        x = output.detach().transpose(0, 1).flatten(1).double()
        self.count, self.last = self.count + x.shape[1], output.detach()
        self.sum, self.squares = self.sum + x.sum(1).cpu(), self.squares + x.square().sum(1).cpu()

    def norm(self) -> nn.Module:
        """A normalisation that changes nothing of what has these moments."""
        mean = self.sum / self.count
        variance = (self.squares / self.count - mean.square()).clamp_min(0)
        made: Any = _KINDS[self.last.dim()](len(mean))
        with torch.no_grad():
            for tensor, values in (
                (made.running_mean, mean), (made.running_var, variance),
                (made.weight, (variance + made.eps).sqrt()), (made.bias, mean),
            ):  # fmt: skip
                tensor.copy_(values)
        return made.to(device=self.last.device, dtype=self.last.dtype).eval()
