"""Runs programs: instructions become steps over numbered slots once, requests walk the steps.

A ``LoadedProgram`` is immutable and shared by all its requests; a ``ProgramRun`` is one request's values. ``advance``
runs until a piece is missing or the program ends, and never waits: whoever drives it delivers pieces and calls again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from edgedi.partition.graph.graph import LayerGraph
from edgedi.partition.graph.operators import weight_interval
from edgedi.partition.plan.plan import HOME
from edgedi.partition.plan.program import Join, Piece, Program, Recv, Run, Send
from edgedi.partition.plan.reuse import overwriting
from edgedi.partition.plan.simulate import region_of
from edgedi.runtime.kernels import fused
from edgedi.runtime.kernels.prepare import prepare

SendPiece = Callable[[Piece, Tensor, int], None]
Opaque = Mapping[str, Callable[[Any], Tensor]]
WeightOf = Callable[[str, Any], Tensor]
Regroup = Callable[["tuple[Step, ...]", WeightOf, LayerGraph], "tuple[Step, ...]"]


@dataclass(frozen=True, slots=True)
class Step:
    """One instruction, resolved: what it is, its function, slots read and written, slots free afterwards.

    The last of a group of runs computes for all of them: its function gives several tensors, into ``writes`` and
    ``more``; those before it have no function and do nothing.
    """

    instruction: Recv | Send | Join | Run
    kernel: Callable[..., Any] | None
    reads: tuple[int, ...]
    writes: int
    frees: tuple[int, ...]
    more: tuple[int, ...] = ()

    @property
    def is_idle(self) -> bool:
        """Whether another step computes in its place."""
        return self.kernel is None and isinstance(self.instruction, (Run, Join))


class LoadedProgram:
    """A program ready to run: kernels made, weights reordered, every piece a slot."""

    def __init__(
        self,
        program: Program,
        graph: LayerGraph,
        weight: WeightOf,
        *,
        opaque: Opaque | None = None,
        packer: fused.Packer | None = None,
        device: str = "cpu",
        regroup: Regroup | None = None,
    ) -> None:
        """``regroup`` may replace steps by others that do the same, such as several layers in an engine's one."""
        self.program, self.graph, self.device = program, graph, device
        self.watch: Callable[[Piece, Tensor], None] | None = None
        """Called with every computed piece, where somebody wants to look into a run; later layers may write over it."""
        self._slots: dict[Piece, int] = {}
        self._steps = self._compile(weight, opaque or {}, packer)
        if regroup is not None:
            self._steps = regroup(self._steps, weight, graph)
        self.first, self.following = _order(self._steps)
        """The number of the first step that does anything, and after each step that of the next."""
        if program.participant == HOME:  # an input that is an output too may be in no instruction
            for name in graph.inputs:
                self._slot(Piece(name))
        self.input_slots = {name: self._slots[Piece(name)] for name in graph.inputs if Piece(name) in self._slots}
        self.arrivals = {
            (step.instruction.piece, step.instruction.source): position
            for position, step in enumerate(self._steps)
            if isinstance(step.instruction, Recv)
        }
        """The step that waits for each piece of each sender."""
        self.slots = dict(self._slots)

    @property
    def steps(self) -> tuple[Step, ...]:
        return self._steps

    @property
    def num_slots(self) -> int:
        return len(self._slots)

    def _slot(self, piece: Piece) -> int:
        return self._slots.setdefault(piece, len(self._slots))

    def _compile(self, weight: WeightOf, opaque: Opaque, packer: fused.Packer | None) -> tuple[Step, ...]:
        last_use: dict[int, int] = {}
        drafts = []
        overwriters = overwriting(self.program, self.graph)
        for index, instruction in enumerate(self.program.instructions):
            reads, writes = self._reads(instruction), -1
            if not isinstance(instruction, Send):
                writes = self._slot(instruction.piece)
            last_use.update(dict.fromkeys((*reads, writes), index))
            overwrite = instruction.piece in overwriters
            drafts.append((instruction, self._kernel(instruction, weight, opaque, packer, overwrite), reads, writes))
        keep = {self._slots[p] for p in self._slots if p.tensor in self.graph.outputs}
        return tuple(
            Step(
                instruction,
                kernel,
                reads,
                writes,
                tuple(s for s in set(reads) if last_use[s] == index and s not in keep),
            )
            for index, (instruction, kernel, reads, writes) in enumerate(drafts)
        )

    def _reads(self, instruction: Any) -> tuple[int, ...]:
        match instruction:
            case Run(inputs=inputs):
                return tuple(self._slot(piece) for piece in inputs)
            case Join(sources=sources):
                return tuple(self._slot(piece) for piece in sources)
            case Send(held=held):
                return (self._slot(held),)
        return ()

    def _kernel(
        self, instruction: Any, weight: WeightOf, opaque: Opaque, packer: fused.Packer | None, overwrite: bool
    ) -> Callable[..., Tensor] | None:
        match instruction:
            case Run(piece=piece):
                layer = self.graph.by_name[piece.tensor]
                if layer.op == "opaque":
                    function = opaque[layer.name]
                    return lambda *inputs: function(inputs)
                cut = weight_interval(layer, region_of(piece))
                weights = {role: weight(name, cut) for role, name in layer.weights.items()}
                return prepare(instruction, self.graph, weights, packer, overwrite=overwrite)
            case Join():
                return _joiner(instruction)
            case Send(piece=piece, held=held):
                return _cutter(piece, held)
        return None


def _order(steps: Sequence[Step]) -> tuple[int, tuple[int, ...]]:
    """A network that an engine computes at once has one step that computes and a hundred idle ones to pass over."""
    following, number = [len(steps)] * len(steps), len(steps)
    for index in reversed(range(len(steps))):
        following[index] = number
        number = number if steps[index].is_idle else index
    return number, tuple(following)


def _joiner(join: Join) -> Callable[..., Tensor]:
    """Concatenation of neighbouring pieces without overlaps; rows of a channels-last map are joined as plain memory."""
    cuts, position = [], join.piece.interval.start
    for source in join.sources:
        stop = min(source.interval.stop, join.piece.interval.stop)
        cuts.append((position - source.interval.start, stop - position))
        position = stop
    dim = join.piece.dim

    def run(*pieces: Tensor) -> Tensor:
        parts = [piece.narrow(dim, *cut) for piece, cut in zip(pieces, cuts, strict=True)]
        if parts[0].dim() == 4:
            stored = torch.cat([part.permute(0, 2, 3, 1) for part in parts], (0, 3, 1, 2)[dim])
            return stored.permute(0, 3, 1, 2)
        return torch.cat(parts, dim)

    return run


def _cutter(piece: Piece, held: Piece) -> Callable[..., Tensor] | None:
    if piece == held:
        return None
    if piece.dim < 0:
        return None
    start = piece.interval.start - (held.interval.start if held.dim == piece.dim else 0)
    dim, length = piece.dim, len(piece.interval)
    return lambda tensor: tensor.narrow(dim, start, length)


class ProgramRun:
    """One request walking a loaded program."""

    __slots__ = ("_inbox", "_loaded", "_position", "_values", "error")

    def __init__(self, loaded: LoadedProgram, inputs: Mapping[str, Tensor] | None = None) -> None:
        self._loaded = loaded
        self._values: list[Tensor | None] = [None] * loaded.num_slots
        self._inbox: dict[int, Tensor] = {}
        """What has come, by the step that takes it."""
        self._position = loaded.first
        for name, slot in loaded.input_slots.items():
            if inputs is not None:
                self._values[slot] = inputs[name]

    def deliver(self, piece: Piece, source: int, tensor: Tensor) -> None:
        """Hand over a received piece; order does not matter, and what no step waits for is dropped."""
        position = self._loaded.arrivals.get((piece, source))
        if position is not None:
            self._inbox[position] = tensor

    @property
    def can_advance(self) -> bool:
        """Whether the next instruction does not wait for a piece that is missing."""
        steps = self._loaded.steps
        if self._position >= len(steps):
            return True
        return not isinstance(steps[self._position].instruction, Recv) or self._position in self._inbox

    @property
    def current_layer(self) -> str | None:
        """The tensor that the next instruction is about, for error messages."""
        steps = self._loaded.steps
        return steps[self._position].instruction.piece.tensor if self._position < len(steps) else None

    def advance(self, send: SendPiece) -> bool:
        """Run until a piece is missing (``False``) or the program has ended (``True``)."""
        steps, following, values, watch = self._loaded.steps, self._loaded.following, self._values, self._loaded.watch
        while self._position < len(steps):
            step = steps[self._position]
            instruction, kernel = step.instruction, step.kernel
            if isinstance(instruction, Recv):
                tensor = self._inbox.pop(self._position, None)
                if tensor is None:
                    return False
                values[step.writes] = tensor
            elif isinstance(instruction, Send):
                held = values[step.reads[0]]
                send(instruction.piece, held if kernel is None else kernel(held), instruction.target)
            else:
                self._compute(step, watch)
            for slot in step.frees:
                values[slot] = None
            self._position = following[self._position]
        return True

    def _compute(self, step: Step, watch: Callable[[Piece, Tensor], None] | None) -> None:
        """A JOIN, a RUN, or the RUN that computes for its group."""
        values, kernel = self._values, step.kernel
        assert kernel is not None, "idle steps are passed over"
        made = kernel(*[values[slot] for slot in step.reads])
        if step.more:
            for slot, tensor in zip((step.writes, *step.more), made, strict=True):
                values[slot] = tensor
            return
        values[step.writes] = made
        if watch is not None and isinstance(step.instruction, Run):
            watch(step.instruction.piece, made)

    def output(self, tensor: str) -> Tensor:
        """A whole output of the finished program."""
        graph = self._loaded.graph
        for piece, slot in self._loaded.slots.items():
            value = self._values[slot]
            if piece.tensor == tensor and value is not None and tuple(value.shape) == graph.spec(tensor).shape:
                return value
        raise KeyError(tensor)


def answer_alone(loaded: LoadedProgram, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The outputs by name, in memory of their own, of a worker's program that needs no other worker."""
    run, outputs = ProgramRun(loaded), dict[str, Tensor]()
    for name, tensor in inputs.items():
        run.deliver(Piece(name), HOME, tensor)

    def keep(piece: Piece, tensor: Tensor, _target: int) -> None:
        outputs[piece.tensor] = tensor.clone()  # it may be a weight, or an input

    if not run.advance(keep):
        raise ValueError(f"the program waits for more than the inputs, at {run.current_layer}")
    return outputs
