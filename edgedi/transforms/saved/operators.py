"""The operators that a saved network may name.

A name in a file is not looked up as a function anywhere else than here: public operators of torch's own library that
change nothing, read tensors, or make them from numbers, and give tensors. None of them opens a file or prints.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch

from edgedi.transforms.saved.program import GETITEM

_MAKERS = frozenset("arange empty eye full linspace ones scalar_tensor zeros".split())
"""Operators that read no tensor."""
_INTERNAL = frozenset(
    """
    _adaptive_avg_pool2d _log_softmax _native_batch_norm_legit_no_training _softmax _to_copy
    _unsafe_index _unsafe_view _upsample_nearest_exact2d
    """.split()
)
"""Operators that ``torch.export`` writes although their names are not public."""
_TENSORS = frozenset(("Tensor", "Optional[Tensor]", "List[Tensor]", "List[Optional[Tensor]]"))


def operator_of(name: str) -> Callable[..., Any]:
    """The function that ``aten.NAME.OVERLOAD`` or ``getitem`` names; ``ValueError`` where it is none of these."""
    if name == GETITEM:
        return operator.getitem
    library, base, overload = name.split(".") if name.count(".") == 2 else ("", "", "")
    found = getattr(getattr(torch.ops.aten, base, None), overload, None) if library == "aten" else None
    if not isinstance(found, torch._ops.OpOverload) or not _is_harmless(base, found._schema):
        raise ValueError(f"operator {name} is none that a saved network may have")
    return found


def _is_harmless(base: str, schema: Any) -> bool:
    public = (base in _INTERNAL or not base.startswith("_")) and not base.endswith("_")
    reads = base in _MAKERS or any(str(argument.type) in _TENSORS for argument in schema.arguments)
    gives = all(str(given.type) in _TENSORS for given in schema.returns)
    return public and reads and gives and bool(schema.returns) and not schema.is_mutable
