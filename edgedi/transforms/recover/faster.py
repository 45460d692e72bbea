"""What makes a training step shorter: the layout of tensors and, where the processor has it, half the precision."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from edgedi.transforms.data import FEATURE_MAPS, Batch, maps_channels_last
from edgedi.transforms.score import is_classes


def channels_last(model: nn.Module) -> nn.Module:
    """In place, where weights are those of 2d convolutions. Processors take less time for their steps then."""
    return _laid_out(model, torch.channels_last)


def as_usual(model: nn.Module) -> nn.Module:
    """In place: the opposite of ``channels_last``."""
    return _laid_out(model, torch.contiguous_format)


def _laid_out(model: nn.Module, layout: torch.memory_format) -> nn.Module:
    for parameter in model.parameters():
        if parameter.dim() == FEATURE_MAPS:
            parameter.data = parameter.data.contiguous(memory_format=layout)
    return model


def batch_channels_last(batch: Batch) -> Batch:
    """Its arguments in the layout of ``channels_last``."""
    return Batch(pytree.tree_map(maps_channels_last, batch.arguments), batch.labels)


def contiguous(answer: Any) -> Any:
    """``answer`` in the usual layout: a user's ``loss`` may take a ``view`` of it."""
    return pytree.tree_map(lambda leaf: leaf.contiguous() if isinstance(leaf, Tensor) else leaf, answer)


MAPS, WEIGHT = (32, 64, 16, 16), (64, 64, 3, 3)
"""The convolution that both precisions are tried on."""
TRIALS = 5
PAYS = 0.8
"""bfloat16 is used where it takes at most this share of float32's seconds: for less, digits are worth more."""


def has_bfloat16(device: torch.device) -> bool:
    """Whether ``device`` multiplies bfloat16 numbers itself."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    able: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # older PyTorch does not say
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def bfloat16_pays(clock: Callable[[], float]) -> bool:
    """Whether this processor trains faster in bfloat16 than in float32, tried by turns.

    That it has the instructions does not say so: an AMD EPYC takes half as long by them, an Intel Xeon without AMX
    longer (``bench.vgg_cifar`` has the figures).
    """
    seconds: dict[torch.dtype, list[float]] = {torch.float32: [], torch.bfloat16: []}
    for _ in range(1 + TRIALS):
        for dtype, taken in seconds.items():
            taken.append(_seconds(dtype, clock))
    single, half = (min(taken[1:]) for taken in seconds.values())  # the first round prepares
    return half <= PAYS * single


@torch.enable_grad()
def _seconds(dtype: torch.dtype, clock: Callable[[], float]) -> float:
    """Of the convolution forwards and back, in the layout of training."""
    maps, weight = (torch.ones(s, dtype=dtype).to(memory_format=torch.channels_last) for s in (MAPS, WEIGHT))
    leaves = maps.requires_grad_(), weight.requires_grad_()
    started = clock()
    torch.autograd.grad(F.conv2d(maps, weight, padding=1).sum(), leaves)
    return clock() - started


@cache
def _pays_here(num_threads: int) -> bool:
    """Tried once: a training that is taken up again must not see another answer."""
    return bfloat16_pays(time.perf_counter)


def may_be_halves(answer: Sequence[Tensor]) -> bool:
    """Whether a network with these leaves of an answer gains by bfloat16 and loses nothing that counts."""
    if not is_classes([answer]) or answer[0].dtype != torch.float32 or not has_bfloat16(answer[0].device):
        return False
    return answer[0].device.type != "cpu" or _pays_here(torch.get_num_threads())


def in_float32(answer: Any) -> Any:
    """``answer`` with its bfloat16 tensors widened: losses need the digits."""
    return pytree.tree_map(
        lambda leaf: leaf.float() if isinstance(leaf, Tensor) and leaf.dtype == torch.bfloat16 else leaf, answer
    )
