"""Runs of consecutive layers given to an engine as one, where the worker has measured that it is faster that way.

Between two exchanges a program is a chain of RUN instructions. PyTorch takes each from Python, some 20 microseconds a
layer, and some memory; an engine takes the whole chain at once. For large layers that is nothing, for small ones a
third of their time. So both are timed on noise when the program is loaded, and the faster one is kept.

Measured at every load: two deployments of one plan may choose differently, and then differ in rounding.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from edgedi.partition.graph.graph import LayerGraph
from edgedi.partition.graph.operators import weight_interval
from edgedi.partition.plan.program import Piece, Run
from edgedi.partition.plan.simulate import region_of
from edgedi.runtime.execution.executor import Step, WeightOf
from edgedi.runtime.execution.tensors import Tensor, inference, random_piece
from edgedi.runtime.kernels import openvino_graph
from edgedi.runtime.kernels.openvino_graph import Group
from edgedi.runtime.kernels.prepare import Task, task_of

LEAST_RUNS = 5
"""Shorter chains are not worth the time that an engine takes to prepare."""
FASTER_BY = 0.98
"""An engine is chosen where it takes at most this share of the time: less is noise, and torch needs no second copy."""
REPEATS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One chain of runs: its layers, what both took, and whether the engine computes it."""

    layers: tuple[str, ...]
    torch_s: float
    engine_s: float

    @property
    def engine(self) -> bool:
        return self.engine_s <= FASTER_BY * self.torch_s

    @property
    def factor(self) -> float:
        """What share of torch's time the chain takes."""
        return self.engine_s / self.torch_s if self.engine else 1.0


class EngineGroups:
    """A ``regroup`` for ``LoadedProgram``; ``choices`` says what it found."""

    def __init__(self, threads: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self._threads, self._clock = threads, clock
        self.choices: list[Choice] = []

    @property
    def factor(self) -> float:
        """What share of torch's time the chains take with what was chosen for each; 1 where there are none."""
        torch_s = sum(choice.torch_s for choice in self.choices)
        chosen_s = sum(choice.factor * choice.torch_s for choice in self.choices)
        return chosen_s / torch_s if torch_s else 1.0

    @property
    def takes_any(self) -> bool:
        """Whether an engine computes any chain."""
        return any(choice.engine for choice in self.choices)

    def __str__(self) -> str:
        taken = sum(choice.engine for choice in self.choices)
        return f"torch; {openvino_graph.NAME} for {taken} of {len(self.choices)} chains" if self.takes_any else "torch"

    def __call__(self, steps: tuple[Step, ...], weight: WeightOf, graph: LayerGraph) -> tuple[Step, ...]:
        changed = list(steps)
        with inference():
            for start, stop, tasks in _chains(steps, weight, graph):
                merged = self._merged(changed, start, stop, tasks, graph)
                if merged is not None:
                    changed[start:stop] = merged
        return tuple(changed)

    def _merged(
        self, steps: list[Step], start: int, stop: int, tasks: Sequence[Task], graph: LayerGraph
    ) -> list[Step] | None:
        """The chain's steps with all work in the last, if that is faster."""
        chain, rest = steps[start:stop], steps[stop:]
        made = {step.writes: step.instruction.piece for step in chain}
        read = dict.fromkeys(slot for step in chain for slot in step.reads if slot not in made)
        later = {slot for step in rest for slot in step.reads}
        freed = {slot for step in chain for slot in step.frees}
        wanted = [slot for slot in made if slot in later or _is_output(made[slot], graph)] or [chain[-1].writes]
        pieces = {slot: piece for step in chain for slot, piece in zip(step.reads, _inputs(step), strict=True)}
        inputs = [random_piece(pieces[slot], graph) for slot in read]
        group = Group(
            runs=[(step.instruction.piece, _inputs(step), task) for step, task in zip(chain, tasks, strict=True)],
            inputs=[pieces[slot] for slot in read],
            outputs=[made[slot] for slot in wanted],
            shapes={
                **{pieces[slot]: tuple(tensor.shape) for slot, tensor in zip(read, inputs, strict=True)},
                **{made[slot]: tuple(random_piece(made[slot], graph).shape) for slot in wanted},
            },
        )
        kernel = openvino_graph.build(group, self._threads) if read else None
        if kernel is None:
            return None
        slots = dict(zip(read, inputs, strict=True))
        torch_s, engine_s = self._least(lambda: _walk(chain, dict(slots)), lambda: kernel(*inputs))
        layers = tuple(step.instruction.piece.tensor for step in chain)
        choice = Choice(layers=layers, torch_s=torch_s, engine_s=engine_s)
        self.choices.append(choice)
        if not choice.engine:
            return None
        idle = [replace(step, kernel=None, reads=(), frees=()) for step in chain[:-1]]
        # One output is a tuple of one for the engine, and for a step of several outputs only.
        one = kernel if len(wanted) > 1 else lambda *given: kernel(*given)[0]
        frees = tuple(slot for slot in freed if slot in read)
        last = Step(chain[-1].instruction, one, tuple(read), wanted[0], frees, tuple(wanted[1:]))
        return [*idle, last]

    def _least(self, *runs: Callable[[], object]) -> tuple[float, ...]:
        """The least seconds of each, in turn: what disturbs the device disturbs all, and each finds the caches as the
        others left them, as in a request.
        """
        rounds = [[self._seconds(run) for run in runs] for _ in range(REPEATS)]
        return tuple(map(min, zip(*rounds, strict=True)))

    def _seconds(self, run: Callable[[], object]) -> float:
        started = self._clock()
        run()
        return self._clock() - started


def _is_output(piece: Piece, graph: LayerGraph) -> bool:
    return piece.tensor in graph.outputs


def _inputs(step: Step) -> tuple[Piece, ...]:
    assert isinstance(step.instruction, Run)
    return step.instruction.inputs


def _walk(chain: Sequence[Step], slots: dict[int, Tensor]) -> None:
    for step in chain:
        assert step.kernel is not None
        slots[step.writes] = step.kernel(*[slots[slot] for slot in step.reads])
        for slot in step.frees:
            slots.pop(slot, None)


def _chains(steps: Sequence[Step], weight: WeightOf, graph: LayerGraph) -> Iterator[tuple[int, int, list[Task]]]:
    """Longest runs of steps that an engine may take: (first, one past the last, their tasks)."""
    start, tasks = 0, list[Task]()
    for index, step in enumerate([*steps, None]):
        task = _task(step, weight, graph) if step is not None else None
        if task is not None:
            tasks.append(task)
            continue
        if len(tasks) >= LEAST_RUNS:
            yield start, index, tasks
        start, tasks = index + 1, []


def _task(step: Step, weight: WeightOf, graph: LayerGraph) -> Task | None:
    run = step.instruction
    if not isinstance(run, Run):
        return None
    layer = graph.by_name[run.piece.tensor]
    if layer.op == "opaque":
        return None
    cut = weight_interval(layer, region_of(run.piece))
    task = task_of(run, graph, {role: weight(name, cut) for role, name in layer.weights.items()})
    return task if openvino_graph.takes(task) else None
