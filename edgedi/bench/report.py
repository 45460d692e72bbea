"""What a comparison found, as values: what ran, how long it took, what was sent, and where. Pure: no torch, no clock.

Everything that tables, JSON, the HTML page and verdicts say is computed from these.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgedi.bench.numbers import Ratio, Spread, spread, times_as_fast
from edgedi.bench.settings import Settings
from edgedi.partition.plan.memory import program_memory
from edgedi.partition.plan.plan import HOME, Plan
from edgedi.partition.plan.program import ProgramSet, participant_name
from edgedi.partition.plan.simulate import simulate
from edgedi.runtime.session.trace import Span

ONE_WORKER = "single"
"""The planner that uses the best worker alone: the base of every speedup."""
MOST_FOREIGN_SHARE = 0.05
"""Of all processors: where others use more, a round counts as disturbed, and the machine as busy before we begin."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The machine that the command runs on, and what runs there. A claim carries its evidence."""

    processor: str
    num_cores: int
    system: str
    python: str
    torch: str
    edgedi: str
    others_share: float
    """What others, and the hypervisor, took of all processors just before we began."""
    command: str
    date: str

    @property
    def busy(self) -> str:
        """What to think of times taken now; empty where nothing else ran before."""
        if self.others_share < MOST_FOREIGN_SHARE:
            return ""
        return f"Other programs used {self.others_share:.0%} of this machine before this began: do not trust the times."

    def __str__(self) -> str:
        return (
            f"{self.processor}, {self.num_cores} cores; {self.system}; Python {self.python}, torch {self.torch}, "
            f"edgedi {self.edgedi}; {self.date}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Payload bytes of one request: between the coordinator and workers (both ways), and among the workers."""

    home_bytes: int
    between_workers_bytes: int

    @property
    def total_bytes(self) -> int:
        """Everything that one request moves."""
        return self.home_bytes + self.between_workers_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """One worker's resident memory: now largest, and right after its imports, before it had served anybody."""

    worker: str
    peak_bytes: int
    baseline_bytes: int

    @property
    def above_bytes(self) -> int:
        """What serving cost: all planners of the run together, as they share the workers."""
        return max(0, self.peak_bytes - self.baseline_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Late:
    """How far an emulated device was behind its own time at worst, in a turn whose timed requests took ``taken_s``."""

    late_s: float
    taken_s: float

    @property
    def share(self) -> float:
        """The part of their time that it was behind."""
        return self.late_s / self.taken_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Disturbance:
    """A round in which others had the processors, or an emulated device was late: shares of all processor time of the
    round, and of the time that its requests took."""

    round: int
    steal_share: float = 0.0
    foreign_share: float = 0.0
    late_share: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One contender's part of a run: seconds of each round, and its answers against the model's own.

    ``difference`` is the largest difference of any answer, as a share of the largest value of the model's own answer.
    """

    name: str
    seconds: tuple[float, ...]
    difference: float
    within_tolerance: bool

    @property
    def spread(self) -> Spread:
        """The seconds in short."""
        return spread(self.seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """A planner's part of the run. ``programs`` are what the workers ran, with the graph.

    ``layer_s[k]`` is what each layer of worker k's program took it, measured in this run while all workers computed at
    once and nobody exchanged anything; empty where that was not measured.
    """

    result: Result
    planner: str
    plan: Plan
    programs: ProgramSet
    traffic: Traffic
    speedup: Ratio | None
    """Over one worker; ``None`` where no plan for one fits."""
    against_best: Ratio | None
    """Over the best engine, if there is one."""
    computed_by: tuple[str, ...]
    """What each worker let compute its layers: torch, and which engines how many chains of them."""
    layer_s: tuple[Mapping[str, float], ...] = ()
    spans: tuple[Span, ...] = ()
    """What every participant did during one request, traced after the rounds."""
    against_first: Ratio | None = None
    """Over the first planner, where there is neither one worker nor an engine."""

    @property
    def num_workers(self) -> int:
        """How many workers the planner could use: one by its nature, or all given, even if its plan uses fewer."""
        return 1 if self.planner == ONE_WORKER else self.plan.num_workers

    @property
    def predicted_bound_s(self) -> float:
        """What the plan predicts of computing alone."""
        return sum(segment.cost.compute_s for segment in self.plan.segments)

    @property
    def bound_s(self) -> float:
        """Seconds of the same plan with no communication: measured where it was, else predicted."""
        return sum(self.segment_s(index) for index in range(len(self.plan.segments)))

    def segment_s(self, index: int) -> float:
        """Computing seconds of one segment's slowest worker; predicted for what no worker runs."""
        segment = self.plan.segments[index]
        if not self.layer_s or segment.on == HOME:
            return segment.cost.compute_s
        names = [layer.name for layer in self.programs.graph.layers[segment.layers.start : segment.layers.stop]]
        return max(sum(taken.get(name, 0.0) for name in names) for taken in self.layer_s)

    @property
    def largest_bytes(self) -> int:
        """Weights and maps of the worker's program that needs most: what a memory limit bounds."""
        programs, graph = self.programs.programs, self.programs.graph
        return max(
            (program_memory(program, graph).total_bytes for k, program in programs.items() if k != HOME), default=0
        )

    @property
    def share_of_bound(self) -> Ratio:
        """The speed reached, as a share of the speed with no communication."""
        return times_as_fast(self.result.seconds, (self.bound_s,) * len(self.result.seconds))

    @property
    def ratios(self) -> tuple[Ratio, ...]:
        """How many times as fast it was, over each of the report's ``bases``."""
        return tuple(ratio for ratio in (self.speedup, self.against_best, self.against_first) if ratio)

    @property
    def over_one_device(self) -> Ratio | None:
        """The speedup over the best engine where there is one, else over one worker, if it could be compared."""
        return self.against_best or self.speedup

    @property
    def efficiency(self) -> float | None:
        """That speedup for each worker given."""
        return self.over_one_device.median / self.num_workers if self.over_one_device else None

    @property
    def off_by(self) -> float:
        """The predicted time against the measured one: 0.1 is predicted a tenth too long."""
        return self.plan.predicted_s / self.result.spread.median_s - 1


def link_bytes(split: Split) -> tuple[tuple[str, str, int], ...]:
    """(source, target, payload bytes) of one request on every link, from a dry-run of the programs: exact."""
    counted = simulate(split.programs).bytes_per_link
    return tuple((participant_name(s), participant_name(t), count) for (s, t), count in sorted(counted.items()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Single:
    """An engine's part of the run. ``own_default`` is the same engine in the precision that it would pick by itself."""

    result: Result
    version: str
    precision: str
    speedup: Ratio | None
    own_default: Single | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Everything that one run found.

    ``not_compared`` says why, by engine or planner. ``ended`` says why the rounds ended before all were run, and is
    empty if they did not: then every contender has the complete rounds before that. ``emulation`` says what the devices
    are where they are not real, and stands beside every figure; ``late_s`` is how far behind their own time this
    machine let them fall in the rounds.
    """

    settings: Settings
    machine: Machine
    workers: tuple[str, ...]
    pinned: bool
    splits: tuple[Split, ...]
    singles: tuple[Single, ...]
    best: str | None
    not_compared: Mapping[str, str]
    memory: tuple[Memory, ...] = ()
    disturbed: tuple[Disturbance, ...] = ()
    ended: str = ""
    emulation: str = ""
    late_s: float = 0.0

    @property
    def num_rounds(self) -> int:
        """Rounds that every contender completed."""
        return len(self.splits[0].result.seconds)

    @property
    def bases(self) -> tuple[str, ...]:
        """What the ``ratios`` of every split are over."""
        one = ("1 worker",) if self.splits[0].speedup else ()
        best = (self.best,) if self.best else ()
        return (*one, *best) or (self.splits[0].result.name,)

    @property
    def computed_by(self) -> dict[str, tuple[str, ...]]:
        """What computed each plan on each worker, by contender."""
        return {split.result.name: split.computed_by for split in self.splits}

    @property
    def largest_plan_bytes(self) -> int:
        """What the plan that needs most takes on one worker."""
        return max(split.largest_bytes for split in self.splits)

    @property
    def same(self) -> bool:
        """Whether every answer in float32 was the model's own."""
        results = [split.result for split in self.splits] + [single.result for single in self.singles]
        return all(result.within_tolerance for result in results)
