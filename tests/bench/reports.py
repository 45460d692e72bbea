"""Reports of runs that never happened: every number is known, so that a page can be held to it."""

from __future__ import annotations

from collections.abc import Sequence

from edgedi.bench.numbers import times_as_fast
from edgedi.bench.report import Disturbance, Machine, Memory, Report, Result, Single, Split, Traffic
from edgedi.bench.settings import Settings
from edgedi.partition.cost.profile import ClusterProfile
from edgedi.partition.graph.graph import LayerGraph
from edgedi.partition.plan.lowering import lower
from edgedi.partition.plan.plan import HOME
from edgedi.partition.plan.program import Run
from edgedi.partition.plan.simulate import simulate
from edgedi.partition.planners.by_name import plan as make_plan
from edgedi.runtime.session.trace import Span
from tests.partition import graphs

MACHINE = Machine(
    processor="Some Processor <1>", num_cores=2, system="Linux 6 x86_64", python="3.11", torch="2.15", edgedi="0.1",
    others_share=0.01, command="edgedi-bench --model torchvision:resnet50 --html 'a & b.html'",
    date="2026-11-21 02:20 UTC",
)  # fmt: skip


def result(name: str, *seconds: float, difference: float = 3e-7) -> Result:
    return Result(name=name, seconds=seconds, difference=difference, within_tolerance=difference <= 2e-5)


def split(
    name: str,
    planner: str,
    num_workers: int,
    seconds: Sequence[float],
    base: Sequence[float],
    best: Sequence[float] | None = None,
    *,
    graph: LayerGraph | None = None,
    layer_s: float | None = 0.001,
    computed_by: Sequence[str] = (),
    spans: tuple[Span, ...] = (),
) -> Split:
    """A planner's real plan of a small network; every layer of every worker took ``layer_s``."""
    network = graphs.residual() if graph is None else graph
    plan = make_plan(network, ClusterProfile.uniform(num_workers), planner)
    programs = lower(plan, network)
    sent = simulate(programs).bytes_per_link
    runs = [
        {i.piece.tensor: layer_s or 0.0 for i in programs.programs[k].instructions if isinstance(i, Run)}
        for k in range(num_workers)
    ]
    return Split(
        result=result(name, *seconds), planner=planner, plan=plan, programs=programs,
        traffic=Traffic(
            home_bytes=sum(count for link, count in sent.items() if HOME in link),
            between_workers_bytes=sum(count for link, count in sent.items() if HOME not in link),
        ),
        speedup=times_as_fast(seconds, base),
        against_best=times_as_fast(seconds, best) if best is not None else None,
        computed_by=tuple(computed_by) or ("torch",) * num_workers,
        layer_s=tuple(runs) if layer_s is not None else (),
        spans=spans,
    )  # fmt: skip


def span(participant: int, kind: str, start_s: float, stop_s: float, *, name: str = "conv0", segment: int = 0) -> Span:
    return Span(
        participant=participant, kind=kind, name=name, segment=segment, start_s=start_s, stop_s=stop_s, request=1
    )


SPANS = (
    span(HOME, "send", 0.0, 0.001, name="x to 0"),
    span(0, "compute", 0.001, 0.006),
    span(0, "send", 0.006, 0.0065, name="conv0 to 1"),
    span(0, "wait", 0.0065, 0.008, name="conv1 from 1"),
    span(1, "wait", 0.0, 0.002, name="x from home"),
    span(1, "compute", 0.002, 0.008, segment=1),
)
ENGINED = "torch; openvino for 2 of 3 chains"
ONE, TWO, EQUAL, ENGINE = (0.04, 0.041, 0.039), (0.02, 0.0205, 0.0195), (0.025, 0.026, 0.024), (0.03, 0.031, 0.029)


def report(model: str = "torchvision:resnet50", worker: str = "local", **changed: object) -> Report:
    """One worker alone, two planners on two workers, one of them also on one of the two, and an engine.

    The plan of oodp lets an engine compute on the first worker.
    """
    values: dict[str, object] = {
        "settings": Settings(model=model, planners=("oodp", "equal"), counts=(1,), rounds=3),
        "machine": MACHINE,
        "workers": (f"{worker}-0", f"{worker}-1"),
        "pinned": True,
        "splits": (
            split("single", "single", 2, ONE, ONE, ENGINE),
            split("oodp", "oodp", 2, TWO, ONE, ENGINE, computed_by=(ENGINED, "torch"), spans=SPANS),
            split("equal", "equal", 2, EQUAL, ONE, ENGINE),
            split("equal on 1", "equal", 1, ONE, ONE, ENGINE),
        ),
        "singles": (
            Single(
                result=result("openvino", *ENGINE), version="2026.4", precision="f32",
                speedup=times_as_fast(ENGINE, ONE),
            ),
        ),
        "best": "openvino",
        "not_compared": {"onnxruntime": "not installed: pip install 'edgedi[onnxruntime]'"},
        "memory": (
            Memory(worker=f"{worker}-0", peak_bytes=800_000_000, baseline_bytes=500_000_000),
            Memory(worker=f"{worker}-1", peak_bytes=600_000_000, baseline_bytes=500_000_000),
        ),
        "disturbed": (Disturbance(round=1, steal_share=0.1, foreign_share=0.0),),
    }  # fmt: skip
    return Report(**{**values, **changed})  # type: ignore[arg-type]  # a test names what it changes
