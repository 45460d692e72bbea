"""A saved network that runs: it walks its program."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from edgedi.transforms.saved.exporting import kind_of
from edgedi.transforms.saved.operators import operator_of
from edgedi.transforms.saved.program import Call, Program, references


@dataclass(frozen=True, slots=True)
class _Reference:
    """A place in an argument where a value goes when the network runs."""

    kind: str
    key: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    """A call with its operator; ``forget`` are the results that nobody reads any more after it."""

    name: str
    run: Callable[..., Any]
    leaves: list[Any]
    tree: Any
    forget: tuple[str, ...]


class SavedNetwork(nn.Module):
    """What ``edgedi.load`` gives: called like the network that was saved, with inputs of the shapes it was saved for.

    Its parameters have the names that they had. It has no layers, so ``compact`` finds nothing in it to make smaller.
    """

    def __init__(self, program: Program, weights: Mapping[str, Tensor]) -> None:
        """``ValueError`` for an operator that is refused, and for a name that no parameter may have."""
        super().__init__()
        self._owners = {name: self._add(name, weights[name], name in program.parameters) for name in program.weights}
        self._program, self._steps = program, _steps(program)
        self._inputs = pytree.tree_structure(_decoded(program.inputs))
        self._constants = [leaf for leaf in _leaves(program.inputs) if not isinstance(leaf, _Reference)]
        self.eval()

    def forward(self, *arguments: Any) -> Any:
        """The answer. ``ValueError`` for inputs of another structure, shape or dtype."""
        values: dict[tuple[str, Any], Any] = {("input", k): x for k, x in enumerate(self._tensors(arguments))}
        for name, (owner, attribute) in self._owners.items():
            values["weight", name] = getattr(owner, attribute)
        for step in self._steps:
            args, kwargs = pytree.tree_unflatten(_filled(step.leaves, values), step.tree)
            values["of", step.name] = step.run(*args, **kwargs)
            for name in step.forget:
                del values["of", name]
        leaves, tree = pytree.tree_flatten(_decoded(self._program.output))
        return pytree.tree_unflatten(_filled(leaves, values), tree)

    def extra_repr(self) -> str:
        """What it was and takes."""
        return f"{self._program.model}, inputs {', '.join(map(str, self._program.tensors))}"

    def _tensors(self, arguments: tuple[Any, ...]) -> list[Tensor]:
        leaves, tree = pytree.tree_flatten(arguments)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        constants = [leaf for leaf in leaves if not isinstance(leaf, Tensor)]
        if tree != self._inputs or constants != self._constants or len(tensors) != len(self._program.tensors):
            raise ValueError(f"inputs are structured {tree}, the network was saved for {self._inputs}")
        for number, (tensor, kind) in enumerate(zip(tensors, self._program.tensors, strict=True)):
            if tuple(tensor.shape) != kind.shape:
                raise ValueError(
                    f"input {number} is {kind_of(tensor)}, the network was saved for {kind}: sizes are fixed when it "
                    "is saved, the batch among them"
                )
        return tensors

    def _add(self, name: str, tensor: Tensor, trained: bool) -> tuple[nn.Module, str]:
        """Register it below modules that bear the parts of its name; return where it is."""
        owner: nn.Module = self
        *parts, attribute = name.split(".")
        try:
            for part in parts:
                if part not in owner._modules:
                    owner.add_module(part, nn.Module())
                owner = owner.get_submodule(part)
            if trained:
                owner.register_parameter(attribute, nn.Parameter(tensor))
            else:
                owner.register_buffer(attribute, tensor)
        except (KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise ValueError(f"no parameter can have the name {name!r}: {error}") from error
        return owner, attribute


def _filled(leaves: list[Any], values: Mapping[tuple[str, Any], Any]) -> list[Any]:
    return [values[leaf.kind, leaf.key] if isinstance(leaf, _Reference) else leaf for leaf in leaves]


def _steps(program: Program) -> list[_Step]:
    last: dict[str, int] = {}
    for index, call in enumerate(program.calls):
        last.update({key: index for kind, key in _reads(call) if kind == "of"})
    kept = {key for kind, key in references(program.output) if kind == "of"}
    made = []
    for index, call in enumerate(program.calls):
        forget = tuple(name for name, at in last.items() if at == index and name not in kept)
        leaves, tree = pytree.tree_flatten((_decoded(call.args), {k: _decoded(v) for k, v in call.kwargs.items()}))
        made.append(_Step(name=call.name, run=operator_of(call.operator), leaves=leaves, tree=tree, forget=forget))
    return made


def _reads(call: Call) -> list[tuple[str, Any]]:
    return list(references([call.args, *call.kwargs.values()]))


def _leaves(argument: Any) -> list[Any]:
    return pytree.tree_leaves(_decoded(argument))


def _decoded(argument: Any) -> Any:
    """An argument of a program as Python has it, with references for what is there only when the network runs."""
    if isinstance(argument, list):
        return [_decoded(each) for each in argument]
    if not isinstance(argument, dict):
        return argument
    ((kind, content),) = argument.items()
    if kind == "tuple":
        return tuple(_decoded(each) for each in content)
    if kind in ("dict", "ordered"):
        pairs = [(key, _decoded(value)) for key, value in content]
        return dict(pairs) if kind == "dict" else OrderedDict(pairs)
    if kind in ("of", "input", "weight"):
        return _Reference(kind, content)
    return float(content) if kind == "float" else _torch_value(kind, content)


def _torch_value(kind: str, name: str) -> Any:
    if kind == "device":
        return torch.device(name)
    found = getattr(torch, name, None)
    if not isinstance(found, getattr(torch, kind)):
        raise ValueError(f"torch has no {kind} {name!r}")
    return found
