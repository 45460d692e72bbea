"""Runs of consecutive layers given to an engine as one, where the worker has measured that it is faster that way.

Between two exchanges a program is a chain of RUN instructions. PyTorch takes each from Python, some 20 microseconds a
layer, and some memory; an engine takes the whole chain at once. For large layers that is nothing, for small ones a
third of their time. So all are timed on noise when the program is loaded, and the fastest is kept.

Measured at every load: two deployments of one plan may choose differently, and then differ in rounding.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from edgedi.partition.graph.graph import LayerGraph
from edgedi.partition.graph.operators import weight_interval
from edgedi.partition.plan.program import Piece, Run
from edgedi.partition.plan.simulate import region_of
from edgedi.runtime.execution.executor import Step, WeightOf
from edgedi.runtime.execution.tensors import Tensor, inference, random_piece
from edgedi.runtime.kernels.group import Engine, Group, GroupKernel, takes
from edgedi.runtime.kernels.prepare import Task, task_of

log = logging.getLogger("edgedi.worker")

LEAST_RUNS = 3
"""What lies between two exchanges, often: a 3 x 3 convolution and those of 1 x 1 behind it. Shorter chains gain nothing
that could be told from noise."""
FASTER_BY = 0.98
"""An engine is chosen where it takes at most this share of the time: less is noise, and torch needs no second copy."""
REPEATS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One chain of runs: what they make, what torch and each engine took, and which computes it."""

    pieces: tuple[Piece, ...]
    torch_s: float
    engines_s: Mapping[str, float]

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers that the pieces are of."""
        return tuple(piece.tensor for piece in self.pieces)

    @property
    def engine(self) -> str | None:
        """``None`` where it is torch."""
        fastest = min(self.engines_s, key=self.engines_s.__getitem__)
        return fastest if self.engines_s[fastest] <= FASTER_BY * self.torch_s else None

    @property
    def factor(self) -> float:
        """What share of torch's time the chain takes."""
        return 1.0 if self.engine is None else self.engines_s[self.engine] / self.torch_s


class EngineGroups:
    """A ``regroup`` for ``LoadedProgram``; ``choices`` says what it found."""

    def __init__(self, engines: Sequence[Engine], threads: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self._engines, self._threads, self._clock = engines, threads, clock
        self.choices: list[Choice] = []

    def ask_at_most(self, count: int) -> None:
        """Try no more than the first ``count`` engines: where memory is limited, each holds the weights again."""
        self._engines = self._engines[:count]

    @property
    def factor(self) -> float:
        """What share of torch's time the chains take with what was chosen for each; 1 where there are none."""
        torch_s = sum(choice.torch_s for choice in self.choices)
        chosen_s = sum(choice.factor * choice.torch_s for choice in self.choices)
        return chosen_s / torch_s if torch_s else 1.0

    @property
    def takes_any(self) -> bool:
        """Whether an engine computes any chain."""
        return any(choice.engine is not None for choice in self.choices)

    @property
    def layers(self) -> set[str]:
        """The layers that engines compute."""
        return {layer for choice in self.choices if choice.engine is not None for layer in choice.layers}

    @property
    def words(self) -> tuple[str, ...]:
        """Which engines compute, and how many of the chains; nothing where it is torch alone."""
        counts = Counter(choice.engine for choice in self.choices if choice.engine is not None)
        taken = ", ".join(f"{name} for {count}" for name, count in counts.most_common())
        return (f"{taken} of {len(self.choices)} chains",) if taken else ()

    def __call__(self, steps: tuple[Step, ...], weight: WeightOf, graph: LayerGraph) -> tuple[Step, ...]:
        if not self._engines:
            return steps
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
        kernel = self._fastest(group, chain, dict(zip(read, inputs, strict=True))) if read else None
        if kernel is None:
            return None
        idle = [replace(step, kernel=None, reads=(), frees=()) for step in chain[:-1]]
        # One output is a tuple of one for the engine, and for a step of several outputs only.
        one = kernel if len(wanted) > 1 else lambda *given: kernel(*given)[0]
        frees = tuple(slot for slot in freed if slot in read)
        last = Step(chain[-1].instruction, one, tuple(read), wanted[0], frees, tuple(wanted[1:]))
        return [*idle, last]

    def _fastest(self, group: Group, chain: Sequence[Step], slots: Mapping[int, Tensor]) -> GroupKernel | None:
        """The engine's function that computes the chain; ``None`` where torch is faster, or no engine takes it."""
        built = {engine.name: self._built(engine, group, slots.values()) for engine in self._engines}
        kernels = {name: kernel for name, kernel in built.items() if kernel is not None}
        if not kernels:
            return None
        runs = [partial(kernel, *slots.values()) for kernel in kernels.values()]
        torch_s, *engines_s = self._least(lambda: _walk(chain, dict(slots)), *runs)
        choice = Choice(
            pieces=tuple(step.instruction.piece for step in chain),
            torch_s=torch_s,
            engines_s=dict(zip(kernels, engines_s, strict=True)),
        )
        self.choices.append(choice)
        return None if choice.engine is None else kernels[choice.engine]

    def _built(self, engine: Engine, group: Group, inputs: Iterable[Tensor]) -> GroupKernel | None:
        """The engine's function; ``None`` where it does not take the chain, or fails at what torch computes."""
        try:
            kernel = engine.build(group, self._threads)
            if kernel is not None:
                kernel(*inputs)
        except Exception as error:  # whatever an engine raises: without it the program runs as well
            layers = f"{group.runs[0][0].tensor} to {group.runs[-1][0].tensor}"
            log.warning("%s is left out for layers %s: %s: %s", engine.name, layers, type(error).__name__, error)
            return None
        return kernel

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
    if layer.op == "opaque" or any(graph.spec(name).dtype != "float32" for name in layer.inputs):
        return None
    cut = weight_interval(layer, region_of(run.piece))
    task = task_of(run, graph, {role: weight(name, cut) for role, name in layer.weights.items()})
    return task if takes(task) else None
