"""nn.Module -> LayerGraph, through ``torch.export``: one functional graph with shapes and no user code.

``capture_model`` returns a ``Capture``: the graph, its weights as tensors, and how to take inputs apart and put outputs
together. ATen operators become rows of the operator table through ``aten.HANDLERS``; what is not in the table becomes
an ``opaque`` layer that only this process can run. Whatever depends on weights alone is computed once, here.
"""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from edgedi.errors import GraphError
from edgedi.partition.capture.aten import DROPOUTS, HANDLERS, IDENTITIES, Call
from edgedi.partition.capture.builder import Builder, Symbol, dtype_name
from edgedi.partition.capture.fuse import fuse
from edgedi.partition.graph.graph import LayerGraph

Opaque = Callable[[Sequence[Tensor]], Tensor]


@dataclass(frozen=True, kw_only=True)
class Capture:
    """A captured model: the graph as data, and what only this process holds of it."""

    graph: LayerGraph
    weights: Mapping[str, Tensor]
    opaque: Mapping[str, Opaque]
    input_tree: pytree.TreeSpec
    output_tree: pytree.TreeSpec
    output_slots: tuple[str | None, ...]
    """For each leaf of the output: the tensor's name, or ``None`` for the constant at the same place."""
    output_constants: tuple[Any, ...]
    input_constants: tuple[Any, ...] = ()
    """The leaves of the inputs that are no tensors: the graph holds for these values only."""

    def flatten(self, inputs: tuple[Any, ...]) -> dict[str, Tensor]:
        """The graph's inputs by name. ``ValueError`` or ``TypeError`` where they do not match the captured ones."""
        leaves, tree = taken_apart(inputs)
        if tree is not self.input_tree and tree != self.input_tree:
            raise ValueError(f"inputs are structured {tree}, the model was captured with {self.input_tree}")
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        numbers = tuple(leaf for leaf in leaves if not isinstance(leaf, Tensor))
        if len(tensors) != len(self.graph.inputs) or numbers != self.input_constants:
            raise ValueError(
                f"arguments besides tensors are {numbers}, the model was captured with {self.input_constants}"
            )
        return dict(zip(self.graph.inputs, tensors, strict=True))

    def unflatten(self, outputs: Mapping[str, Tensor]) -> Any:
        """The model's own output structure from the graph's outputs by name."""
        leaves = [
            _copied(constant) if name is None else outputs[name]
            for name, constant in zip(self.output_slots, self.output_constants, strict=True)
        ]
        return pytree.tree_unflatten(leaves, self.output_tree)


def taken_apart(inputs: tuple[Any, ...]) -> tuple[list[Any], pytree.TreeSpec]:
    """(leaves, structure) of a call's arguments."""
    if are_tensors(inputs):  # as in nearly every request, which need not walk pytree's Python for it
        return list(inputs), _structure_of_tensors(len(inputs))
    leaves, tree = pytree.tree_flatten((inputs, {}))
    return leaves, tree


def are_tensors(inputs: tuple[Any, ...]) -> bool:
    """Whether each argument is a tensor, and so none of them holds others."""
    return all(isinstance(each, Tensor) for each in inputs)


@lru_cache
def _structure_of_tensors(count: int) -> pytree.TreeSpec:
    return pytree.tree_structure(((0,) * count, {}))


def _copied(constant: Any) -> Any:
    """An answer is its receiver's, who may write into it."""
    return constant.clone() if isinstance(constant, Tensor) else constant


def capture(model: nn.Module, example_inputs: Any) -> LayerGraph:
    """The layer graph of ``model`` for inputs shaped like ``example_inputs`` (a tensor, or a tuple of arguments).

    Raises ``ValueError`` for a model in training mode and ``GraphError`` for one that does not export.
    """
    return capture_model(model, example_inputs).graph


def as_arguments(example_inputs: Any) -> tuple[Any, ...]:
    """A single tensor is one argument; a tuple or list is the arguments."""
    return tuple(example_inputs) if isinstance(example_inputs, (tuple, list)) else (example_inputs,)


def capture_model(model: nn.Module, example_inputs: Any) -> Capture:
    """``capture`` with the weights and structure that running needs."""
    check_model(model)
    arguments = as_arguments(example_inputs)
    program = _export(model, arguments)
    builder = Builder()
    with torch.no_grad():
        outputs = _translate(program, builder)
    slots = tuple(value if isinstance(value, str) else None for value in outputs)
    layers, weights, slots = fuse(builder.inputs, builder.layers, builder.weights, slots)
    used = {name for layer in layers for name in layer.weights.values()}
    weights = {name: tensor for name, tensor in weights.items() if name in used}
    graph = LayerGraph(
        inputs=builder.inputs,
        layers=tuple(layers),
        outputs=tuple(dict.fromkeys(slot for slot in slots if slot is not None)),
        weights={name: builder.spec_of(tensor) for name, tensor in weights.items()},
    )
    return Capture(
        graph=graph,
        weights=weights,
        opaque={layer.name: builder.opaque[layer.name] for layer in layers if layer.op == "opaque"},
        input_tree=taken_apart(arguments)[1],
        output_tree=program.call_spec.out_spec,
        output_slots=slots,
        output_constants=tuple(None if isinstance(value, str) else value for value in outputs),
        input_constants=tuple(leaf for leaf in pytree.tree_leaves(arguments) if not isinstance(leaf, Tensor)),
    )


def check_model(model: nn.Module) -> None:
    """``TypeError`` for what is not a module, ``ValueError`` for one with any part in training mode."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; give a torch.nn.Module")
    training = [name or "the model" for name, module in model.named_modules() if module.training]
    if training:
        shown = ", ".join(training[:5]) + (f" and {len(training) - 5} more" if len(training) > 5 else "")
        raise ValueError(f"in training mode: {shown}; call model.eval() first")


def _export(model: nn.Module, args: tuple[Any, ...]) -> Any:
    leaves = pytree.tree_leaves(args)
    if not any(isinstance(leaf, Tensor) for leaf in leaves):
        raise TypeError("example_inputs hold no tensor; give a tensor or a tuple of arguments")
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            return torch.export.export(model, args, strict=False).run_decompositions({})
    except Exception as error:  # torch.export raises many kinds; each means the same to a caller
        where = _users_line(error)
        at = f" at {where}" if where else ""
        raise GraphError(f"{type(model).__name__} does not export{at}: {_reason(error)}") from error


def _users_line(error: BaseException) -> str | None:
    """``file:line in function: code`` of the innermost line of the model's own code that was running."""
    ours = (str(Path(torch.__file__).parent), str(Path(__file__).parent))
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith((*ours, "<"))]
    if not frames:
        return None
    frame = frames[-1]
    return f"{frame.filename}:{frame.lineno} in {frame.name}: {(frame.line or '').strip()}"


def _reason(error: BaseException) -> str:
    """The first paragraph of an exporter's message: what follows is advice for those who debug the exporter."""
    words = " ".join(str(error).split("\n\n")[0].split())
    return f"{type(error).__name__}: {words[:500]}"


def _translate(program: Any, builder: Builder) -> list[Any]:
    """Walk the exported graph in order; returns for every output leaf a tensor name or a constant."""
    signature = program.graph_signature
    _refuse_mutation(signature)
    constants = _constants(program, signature)
    for node in program.graph.nodes:
        if node.op == "placeholder":
            if node.name in constants:
                builder.values[node] = constants[node.name]
            elif isinstance(node.meta.get("val"), Tensor):
                builder.add_input(node)
            else:
                builder.values[node] = node.meta.get("val")
        elif node.op == "call_function":
            _call_or_say(node, builder)
        elif node.op == "output":
            return [_output(value, builder) for value in pytree.arg_tree_leaves(*node.args)]
    raise GraphError("the exported graph has no output")


def _refuse_mutation(signature: Any) -> None:
    changed = [*signature.buffers_to_mutate.values(), *signature.user_inputs_to_mutate.values()]
    if changed:
        names = ", ".join(map(str, changed))
        raise GraphError(f"the model changes {names} while it runs; only pure models can be distributed")


def _constants(program: Any, signature: Any) -> dict[str, Any]:
    state = {**program.state_dict, **program.constants}
    sources = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    return {name: state[target].detach() for name, target in sources.items()}


def _output(value: Any, builder: Builder) -> Any:
    resolved = builder.resolve(value)
    return resolved.name if isinstance(resolved, Symbol) else resolved


def _call_or_say(node: torch.fx.Node, builder: Builder) -> None:
    """``_call``; whatever goes wrong names the operator and the line of the model that it stands on."""
    try:
        _call(node, builder)
    except GraphError:
        raise
    except Exception as error:  # shapes that depend on data, and whatever else a model may hold
        stack = [line.strip() for line in (node.stack_trace or "").splitlines() if line.strip()]
        at = f" at {' '.join(stack[-2:])}" if stack else ""
        reason = f"cannot be captured{at}: {_reason(error)}"
        raise GraphError(reason, layer=node.name, operator=str(node.target)) from error


def _call(node: torch.fx.Node, builder: Builder) -> None:
    target = str(node.target)
    if target == "<built-in function getitem>":
        source = builder.values.get(node.args[0])
        if isinstance(source, (tuple, list)):
            builder.values[node] = source[node.args[1]]
            return
    _refuse_random(node, target)
    if builder.is_constant(node):
        builder.values[node] = _evaluate(node, builder)
        return
    if target.startswith("aten._assert"):  # what they assert held for the example, and shapes and types are fixed
        return
    if target in IDENTITIES or (target in DROPOUTS and not node.args[2]):
        builder.values[node] = builder.resolve(node.args[0])
        return
    handler = HANDLERS.get(target)
    made = handler(Call.of(node, builder)) if handler else None
    if made is None:
        _add_opaque(node, builder)
    else:
        builder.values[node] = made


def _refuse_random(node: torch.fx.Node, target: str) -> None:
    """Dropout that is on and random numbers have no answer to be equal to."""
    random = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
    if not random or target in HANDLERS or "scaled_dot_product" in target or (target in DROPOUTS and not node.args[2]):
        return
    line = str(node.meta.get("stack_trace", "")).strip().splitlines()[-1:]
    where = f" at {line[0].strip()}" if line else ""
    raise GraphError(f"{target} draws random numbers{where}", layer=node.name, operator=target)


def _evaluate(node: torch.fx.Node, builder: Builder) -> Any:
    args, kwargs = builder.resolve((node.args, node.kwargs))
    assert callable(node.target)
    return node.target(*args, **kwargs)


def _add_opaque(node: torch.fx.Node, builder: Builder) -> None:
    """An operator outside the table, run by the coordinator as it was captured."""
    value = node.meta.get("val")
    template = builder.resolve((node.args, node.kwargs))
    if isinstance(value, Tensor):
        builder.values[node] = _opaque_output(node, node.name, value, None, template, builder)
    elif isinstance(value, (tuple, list)):
        builder.values[node] = [
            _opaque_output(node, f"{node.name}.{index}", item, index, template, builder) if item is not None else None
            for index, item in enumerate(value)
        ]
    else:
        kind = type(value).__name__
        raise GraphError(f"{node.target} returns {kind}, not tensors", layer=node.name, operator=str(node.target))


def _opaque_output(
    node: torch.fx.Node, name: str, value: Tensor, index: int | None, template: Any, builder: Builder
) -> Symbol:
    if dtype_name(value.dtype) is None:
        raise GraphError(f"element type {value.dtype} is not supported", layer=node.name, operator=str(node.target))
    inputs = list(dict.fromkeys(leaf for leaf in pytree.tree_leaves(template) if isinstance(leaf, Symbol)))
    target = node.target
    assert callable(target)

    def run(tensors: Sequence[Tensor]) -> Tensor:
        known = dict(zip(inputs, tensors, strict=True))
        args, kwargs = pytree.tree_map(lambda leaf: known[leaf] if isinstance(leaf, Symbol) else leaf, template)
        result = target(*args, **kwargs)
        return result if index is None else result[index]

    builder.opaque[name] = run
    return builder.add(name, "opaque", inputs, value.shape, value.dtype, attributes={"target": str(target)})
