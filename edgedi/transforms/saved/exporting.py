"""From a network to what is saved of it: its ``Program``, its weights, and torch's own exported program."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from edgedi.errors import CompactionError
from edgedi.transforms.saved.operators import operator_of
from edgedi.transforms.saved.program import GETITEM, Call, Program, TensorKind

_TORCH_KINDS: Mapping[type, str] = {
    torch.dtype: "dtype",
    torch.layout: "layout",
    torch.memory_format: "memory_format",
}
Known = Mapping[str, Any]
"""What stands for a placeholder, by its name: a weight, an input, or an argument that is no tensor as it is."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """``exported`` is what ``torch.export.save`` writes; ``program`` and ``weights`` are what ``edgedi.load`` reads."""

    exported: Any
    program: Program
    weights: bytes
    """In the format of safetensors."""


def export(model: nn.Module, arguments: tuple[Any, ...]) -> Exported:
    """What ``model`` computes for inputs like ``arguments``.

    ``CompactionError`` for a model that cannot be saved, ``ValueError`` for one that is not on the CPU.
    """
    exported, functional = _exported(model, arguments)
    sources = _sources(functional)
    held = {**functional.state_dict, **functional.constants}
    state = {name: held[name].detach() for name in sources.values()}
    leaves = pytree.tree_leaves(arguments)
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    _refuse_devices(model, [*state.values(), *tensors])
    weights = safetensors_bytes({name: tensor.contiguous().clone() for name, tensor in state.items()})
    known = _known(functional, leaves)
    program = Program(
        model=type(model).__name__,
        torch=torch.__version__,
        weights_sha256=hashlib.sha256(weights).hexdigest(),
        inputs=_saying("inputs", lambda: _structure(_numbered(arguments), {})),
        tensors=tuple(map(kind_of, tensors)),
        weights={name: kind_of(tensor) for name, tensor in state.items()},
        parameters=tuple(functional.graph_signature.inputs_to_parameters.values()),
        calls=_calls(functional, known),
        output=_saying("output", lambda: _structure(_answer(functional), known)),
    )
    return Exported(exported=exported, program=program, weights=weights)


def kind_of(tensor: Tensor) -> TensorKind:
    """Its shape and element type."""
    return TensorKind(shape=tuple(tensor.shape), dtype=str(tensor.dtype).removeprefix("torch."))


def _exported(model: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, Any]:
    """As ``torch.export`` gives it, and without operators that change their arguments."""
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            exported = torch.export.export(model, arguments, strict=False)
            functional = exported.run_decompositions({})
    except Exception as error:  # torch.export raises many kinds; each means the same to a caller
        reason = " ".join(str(error).split("\n\n")[0].split())[:500]
        raise CompactionError(
            f"{type(model).__name__} cannot be saved, as torch.export does not take it ({type(error).__name__}: "
            f"{reason}). Make its forward depend on shapes only, not on values of tensors"
        ) from error
    signature = functional.graph_signature
    changed = [*signature.buffers_to_mutate.values(), *signature.user_inputs_to_mutate.values()]
    if changed:
        names = ", ".join(map(str, changed))
        raise CompactionError(f"{type(model).__name__} changes {names} while it runs; only pure models can be saved")
    return exported, functional


def _refuse_devices(model: nn.Module, tensors: list[Tensor]) -> None:
    away = sorted({str(tensor.device) for tensor in tensors} - {"cpu"})
    if away:
        raise ValueError(f"{type(model).__name__} or its inputs are on {', '.join(away)}; save both from the CPU")


# --- the graph --------------------------------------------------------------------------------------------------------


def _sources(functional: Any) -> dict[str, str]:
    """Placeholder name -> name of the parameter, buffer or constant."""
    signature = functional.graph_signature
    constants = signature.inputs_to_lifted_tensor_constants
    return {**signature.inputs_to_parameters, **signature.inputs_to_buffers, **constants}


def _known(functional: Any, leaves: list[Any]) -> Known:
    sources = _sources(functional)
    names = [node.name for node in functional.graph.nodes if node.op == "placeholder" and node.name not in sources]
    given = dict(zip(names, pytree.tree_leaves(_numbered(leaves)), strict=True))
    return {name: {"weight": target} for name, target in sources.items()} | {
        name: {"input": leaf.number} if isinstance(leaf, _Input) else leaf for name, leaf in given.items()
    }


@dataclass(frozen=True, slots=True)
class _Input:
    """Stands for a tensor of the arguments."""

    number: int


def _numbered(arguments: Any) -> Any:
    """``arguments`` with its tensors counted in their order."""
    leaves, tree = pytree.tree_flatten(arguments)
    count = iter(range(len(leaves)))
    return pytree.tree_unflatten([_Input(next(count)) if isinstance(leaf, Tensor) else leaf for leaf in leaves], tree)


def _calls(functional: Any, known: Known) -> tuple[Call, ...]:
    return tuple(
        _saying(_where(node), partial(_call, node, known))
        for node in functional.graph.nodes
        if node.op == "call_function" and not str(node.target).startswith("aten._assert")
    )


def _call(node: Any, known: Known) -> Call:
    target = str(node.target)
    operator = GETITEM if target == "<built-in function getitem>" else target
    operator_of(operator)
    return Call(
        name=node.name,
        operator=operator,
        args=_encoded(list(node.args), known),
        kwargs={key: _encoded(value, known) for key, value in node.kwargs.items()},
    )


def _where(node: Any) -> str:
    line = " ".join(part.strip() for part in (node.stack_trace or "").strip().splitlines()[-2:])
    return f"{node.name} {line}".strip()


def _saying(where: str, make: Callable[[], Any]) -> Any:
    try:
        return make()
    except ValueError as error:
        raise CompactionError(f"it cannot be saved: {error}", layer=where) from error


def _answer(functional: Any) -> Any:
    (node,) = (node for node in functional.graph.nodes if node.op == "output")
    return pytree.tree_unflatten(list(pytree.arg_tree_leaves(*node.args)), functional.call_spec.out_spec)


def _encoded(value: Any, known: Known) -> Any:
    """As an argument of a ``Program``."""
    if isinstance(value, torch.fx.Node):
        return known.get(value.name, {"of": value.name})
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, (list, tuple)):
        return [_encoded(each, known) for each in value]
    if isinstance(value, torch.device) and value.type == "cpu":
        return {"device": "cpu"}
    if type(value) in _TORCH_KINDS:
        return {_TORCH_KINDS[type(value)]: str(value).removeprefix("torch.")}
    raise ValueError(f"an argument is a {type(value).__name__}, {str(value)[:80]}")


def _structure(value: Any, known: Known) -> Any:
    """Of inputs and outputs, where tuples and lists are told apart."""
    if isinstance(value, _Input):
        return {"input": value.number}
    if type(value) in (dict, OrderedDict) and all(isinstance(key, (str, int)) for key in value):
        return {
            "dict" if type(value) is dict else "ordered": [
                [key, _structure(each, known)] for key, each in value.items()
            ]
        }
    if type(value) is tuple:
        return {"tuple": [_structure(each, known) for each in value]}
    if type(value) is list:
        return [_structure(each, known) for each in value]
    if isinstance(value, (list, tuple, dict)):
        raise ValueError(f"a {type(value).__name__} is neither tensor, tuple, list nor dictionary with names")
    return _encoded(value, known)
