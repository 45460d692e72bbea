"""What a saved network computes, as data: operators by name, in order, each with its arguments. Pure.

An argument is a number, text, a truth value, ``None``, a list of arguments, or a dictionary with one key that says what
it is: ``{"of": call}`` an earlier call's result, ``{"input": 0}``, ``{"weight": name}``, ``{"tuple": [...]}``,
``{"dict": [[key, value], ...]}``, likewise ``"ordered"`` for an ``OrderedDict``, ``{"float": "inf"}``, and torch's own
kinds, ``{"dtype": "float32"}`` and the like.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

FORMAT, VERSION = "edgedi-program", 1
GETITEM = "getitem"
_OPERATOR = re.compile(r"aten\.[a-zA-Z_]\w*\.\w+")
_KINDS = frozenset("of input weight tuple dict ordered float dtype device layout memory_format".split())
_FIELDS = frozenset("format version model torch weights_sha256 inputs tensors weights parameters calls output".split())


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorKind:
    """What a tensor must be: ``shape``, and its element type by torch's name, such as "float32"."""

    shape: tuple[int, ...]
    dtype: str

    def __post_init__(self) -> None:
        _check(all(type(length) is int and length >= 0 for length in self.shape), f"shape {self.shape}")
        _check(isinstance(self.dtype, str) and self.dtype.isidentifier(), f"dtype {self.dtype!r}")

    def __str__(self) -> str:
        return f"{'x'.join(map(str, self.shape)) or 'one number'} of {self.dtype}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One operator, ``aten.NAME.OVERLOAD``, or ``getitem``; ``name`` is what later calls know its result by."""

    name: str
    operator: str
    args: list[Any]
    kwargs: dict[str, Any]

    def __post_init__(self) -> None:
        _check(isinstance(self.name, str) and bool(self.name), f"call {self.name!r}")
        known = isinstance(self.operator, str) and (self.operator == GETITEM or _OPERATOR.fullmatch(self.operator))
        _check(bool(known), f"operator {self.operator!r}")
        _check(isinstance(self.args, list) and isinstance(self.kwargs, dict), f"arguments of call {self.name!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A network for inputs of fixed shapes. ``ValueError`` for one that refers to what is not there."""

    model: str
    """The class of the network it was, for people."""
    torch: str
    """The version that exported it."""
    weights_sha256: str
    """Of the file with the weights."""
    inputs: Any
    """The arguments' structure, as an argument."""
    tensors: tuple[TensorKind, ...]
    """What each ``{"input": number}`` must be."""
    weights: Mapping[str, TensorKind]
    parameters: tuple[str, ...]
    """The names of weights that training may change."""
    calls: tuple[Call, ...]
    output: Any
    """The answer's structure, as an argument."""

    def __post_init__(self) -> None:
        known: set[tuple[str, Any]] = {("weight", name) for name in self.weights}
        known |= {("input", number) for number in range(len(self.tensors))}
        for call in self.calls:
            _check_known([call.args, *call.kwargs.values()], known, f"call {call.name!r}")
            _check(("of", call.name) not in known, f"two calls {call.name!r}")
            known.add(("of", call.name))
        _check_known(self.inputs, known, "inputs")
        _check_known(self.output, known, "output")
        _check(set(self.parameters) <= set(self.weights), "parameters")


def references(argument: Any) -> Iterator[tuple[str, Any]]:
    """What ``argument`` reads: ("of", name), ("input", number) and ("weight", name)."""
    if isinstance(argument, list):
        for each in argument:
            yield from references(each)
    elif isinstance(argument, dict):
        ((kind, content),) = argument.items()
        if kind in ("of", "input", "weight"):
            yield kind, content
        elif kind == "tuple":
            yield from references(content)
        elif kind in ("dict", "ordered"):
            yield from references([value for _, value in content])


def written(program: Program) -> str:
    """The text of its file."""
    return json.dumps({"format": FORMAT, "version": VERSION, **asdict(program)}, allow_nan=False)


def parsed(text: str) -> Program:
    """The program in ``text``; ``ValueError`` says what in it is wrong."""
    found = json.loads(text)
    _check(isinstance(found, dict) and found.get("format") == FORMAT, f'the file: it does not say "{FORMAT}"')
    if found.get("version") != VERSION:
        raise ValueError(f"it is of version {found.get('version')!r} where this edgedi reads {VERSION}")
    _check(set(found) == _FIELDS, f"fields {sorted(set(found) ^ _FIELDS)}")
    for name in ("model", "torch", "weights_sha256"):
        _check(isinstance(found[name], str), name)
    try:
        return Program(
            model=found["model"],
            torch=found["torch"],
            weights_sha256=found["weights_sha256"],
            inputs=found["inputs"],
            tensors=tuple(map(_tensor, found["tensors"])),
            weights={name: _tensor(each) for name, each in found["weights"].items()},
            parameters=tuple(found["parameters"]),
            calls=tuple(Call(**each) for each in found["calls"]),
            output=found["output"],
        )
    except (TypeError, AttributeError, KeyError) as error:  # a list where a dictionary belongs, a field too few
        raise ValueError(f"wrong structure: {error}") from error


def _tensor(fields: Mapping[str, Any]) -> TensorKind:
    return TensorKind(shape=tuple(fields["shape"]), dtype=fields["dtype"])


def _check_known(argument: Any, known: set[tuple[str, Any]], where: str) -> None:
    _check_kinds(argument, where)
    for reference in references(argument):
        _check(reference in known, f"{where}: it reads {reference[0]} {reference[1]!r}, which is not there before it")


def _check_kinds(argument: Any, where: str) -> None:
    """Lists and dictionaries are those of the module's docstring, as deep as they go."""
    inside: Any = argument if isinstance(argument, list) else []
    if isinstance(argument, dict):
        _check(len(argument) == 1 and next(iter(argument)) in _KINDS, f"{where}: argument {str(argument)[:80]}")
        ((kind, content),) = argument.items()
        if kind == "tuple":
            inside = content
        elif kind in ("dict", "ordered"):
            pairs = isinstance(content, list) and all(isinstance(p, list) and len(p) == 2 for p in content)
            _check(pairs and all(isinstance(key, (str, int)) for key, _ in content), f"{where}: dictionary")
            inside = [value for _, value in content]
        else:
            _check(isinstance(content, int if kind == "input" else str), f"{where}: {kind} {str(content)[:80]}")
    _check(isinstance(inside, list), f"{where}: {str(argument)[:80]}")
    for each in inside:
        _check_kinds(each, where)


def _check(right: bool, what: str) -> None:
    if not right:
        raise ValueError(f"wrong {what}")
