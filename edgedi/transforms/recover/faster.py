"""What makes a training step shorter: the layout of tensors and, where the processor has it, half the precision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
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


def has_bfloat16(device: torch.device) -> bool:
    """Whether ``device`` multiplies bfloat16 numbers itself, and so faster than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    able: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # older PyTorch does not say
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def may_be_halves(answer: Sequence[Tensor]) -> bool:
    """Whether a network with these leaves of an answer gains by bfloat16 and loses nothing that counts."""
    fits = is_classes([answer]) and answer[0].dtype == torch.float32
    return fits and has_bfloat16(answer[0].device)


def in_float32(answer: Any) -> Any:
    """``answer`` with its bfloat16 tensors widened: losses need the digits."""
    return pytree.tree_map(
        lambda leaf: leaf.float() if isinstance(leaf, Tensor) and leaf.dtype == torch.bfloat16 else leaf, answer
    )
