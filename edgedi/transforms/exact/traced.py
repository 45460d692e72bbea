"""What a model does for one input, as ``torch.export`` sees it, and which of its layers may get other weights.

The graph is only read. Changes are made to the modules, so that the result is the user's own class with smaller layers.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from edgedi.errors import CompactionError

CONVOLUTIONS = frozenset(f"aten.conv{n}d.{kind}" for n in (1, 2, 3) for kind in ("default", "padding"))
LINEAR = "aten.linear.default"
NORMS = frozenset({"aten.batch_norm.default", "aten._native_batch_norm_legit_no_training.default"})
GETITEM = "<built-in function getitem>"

_KINDS: Mapping[str, tuple[type[nn.Module], ...]] = {
    **dict.fromkeys(CONVOLUTIONS, (nn.Conv1d, nn.Conv2d, nn.Conv3d)),
    LINEAR: (nn.Linear,),
    **dict.fromkeys(NORMS, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)),
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Layer:
    """A module with weights that runs once and alone reads them; what it does with them is in the graph."""

    name: str
    module: Any
    node: Any
    """Where it runs."""
    output: Any
    """The node of its output: ``node``, or the first element of what ``node`` returns."""
    plain: bool
    """Whether ``node`` is all that the module does: its class has no forward of its own."""

    @property
    def source(self) -> Any:
        """The node of its input."""
        return self.node.args[0]


@dataclass(frozen=True, kw_only=True, eq=False)
class Traced:
    """One run of ``model``: the exported graph, and its layers that may change, in the order they run."""

    model: nn.Module
    graph: Any
    layers: tuple[Layer, ...]
    state_nodes: frozenset[Any]
    """Placeholders of parameters, buffers and constants; the others are the model's inputs."""

    def without(self, gone: Layer) -> Traced:
        """The same run without ``gone``: whoever read its output reads its input."""
        gone.output.replace_all_uses_with(gone.source)
        for node in (*gone.node.users, gone.node):
            self.graph.erase_node(node)
        return replace(self, layers=tuple(layer for layer in self.layers if layer is not gone))


def trace(model: nn.Module, arguments: tuple[Any, ...]) -> Traced:
    """Export ``model``, in evaluation mode. ``CompactionError`` where that is not possible."""
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.export.export(model, arguments, strict=False).run_decompositions({})
    except Exception as error:  # torch.export raises many kinds; each means the same to a caller
        reason = " ".join(str(error).split("\n\n")[0].split())[:500]
        raise CompactionError(
            f"{type(model).__name__} cannot be traced by torch.export ({type(error).__name__}: {reason}). Nothing was "
            "changed. Make its forward depend on shapes only, not on values of tensors; or compact the part that "
            "exports and put it back"
        ) from error
    signature = program.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    state = {*names, *signature.inputs_to_lifted_tensor_constants}
    placeholders = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    own = {placeholders[name]: target for name, target in names.items() if name in placeholders}
    return Traced(
        model=model,
        graph=program.graph,
        layers=_layers(model, program.graph, own),
        state_nodes=frozenset(placeholders[name] for name in state if name in placeholders),
    )


def shape_of(node: Any) -> tuple[int, ...] | None:
    """The shape of a node's value for the example; ``None`` where it is no tensor."""
    value = node.meta.get("val")
    return tuple(int(size) for size in value.shape) if isinstance(value, Tensor) else None


def _layers(model: nn.Module, graph: Any, own: Mapping[Any, str]) -> tuple[Layer, ...]:
    """``own`` names the parameter or buffer of each placeholder."""
    modules: dict[str, Any] = dict(model.named_modules())
    shared, found = _shared(model), []
    for node in graph.nodes:
        kinds = _KINDS.get(str(node.target)) if node.op == "call_function" else None
        read = [argument for argument in node.args if argument in own] if kinds else []
        state = [own[placeholder] for placeholder in read]
        owners = {target.rpartition(".")[0] for target in state}
        if not kinds or len(owners) != 1:
            continue
        (name,) = owners
        module: Any = modules.get(name)
        output = _output(node)
        alone = all(len(placeholder.users) == 1 for placeholder in read) and shared.isdisjoint(state)
        kind = _kind(module, kinds)
        if output is not None and alone and name and kind is not None and _reads_all(module, state):
            plain = type(module).forward is kind.forward
            found.append(Layer(name=name, module=module, node=node, output=output, plain=plain))
    return tuple(found)


def _output(node: Any) -> Any:
    """The node of the value that readers see; ``None`` where they see more than that."""
    if shape_of(node) is not None:
        return node
    users = [user for user in node.users if str(user.target) == GETITEM and user.args[1] == 0]
    return users[0] if len(users) == 1 == len(node.users) else None


def _shared(model: nn.Module) -> set[str]:
    """Names of parameters and buffers that have another name too."""
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    times = Counter(id(tensor) for _, tensor in named)
    return {name for name, tensor in named if times[id(tensor)] > 1}


def _kind(module: Any, kinds: tuple[type[nn.Module], ...]) -> type[nn.Module] | None:
    """Which of ``kinds`` the module is, with nothing hooked on."""
    if module is None or module._forward_hooks or module._forward_pre_hooks or hasattr(module, "parametrizations"):
        return None
    return next((kind for kind in kinds if isinstance(module, kind)), None)


def _reads_all(module: Any, state: list[str]) -> bool:
    """Whether the run reads every tensor that the module computes with: none of them belongs to something else."""
    tensors = ("weight", "bias", "running_mean", "running_var")
    return {name.rpartition(".")[2] for name in state} == {n for n in tensors if getattr(module, n, None) is not None}
