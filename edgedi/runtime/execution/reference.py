"""All programs of a plan in one process, in turn, without a network: the oracle of tests and the local fallback.

``InProcess`` runs what workers run (same programs); the transport is a dictionary, and nothing is chosen by how fast it
is: every convolution is direct.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from edgedi.errors import PlanError
from edgedi.partition.capture.capture import Capture
from edgedi.partition.graph.geometry import Interval, Need
from edgedi.partition.graph.graph import LayerGraph
from edgedi.partition.plan.lowering import lower
from edgedi.partition.plan.plan import HOME, Plan, Segment
from edgedi.partition.plan.program import Piece, ProgramSet
from edgedi.partition.plan.simulate import region_of
from edgedi.runtime.execution.executor import LoadedProgram, ProgramRun
from edgedi.runtime.kernels import fused


def weights_of(capture: Capture) -> Any:
    """Lookup of captured weights, cut along their leading dimension where a channel split asks for it."""
    return lambda name, cut: capture.weights[name] if cut is None else capture.weights[name][cut.start : cut.stop]


def home_plan(graph: LayerGraph) -> Plan:
    """Everything in the coordinator's own process."""
    segment = Segment(layers=Interval(0, len(graph.layers)), axis="whole", on=HOME)
    return Plan(num_workers=0, segments=(segment,), graph_digest=graph.digest, planner="home")


class InProcess:
    """``programs`` of ``capture``'s graph, run one participant after the other as far as each can go."""

    def __init__(self, capture: Capture, programs: ProgramSet, *, fast: bool = True) -> None:
        self._capture = capture
        packer = fused.Packer(room_bytes=0) if fast and fused.available() else None
        self.loaded = {
            participant: LoadedProgram(
                program, capture.graph, weights_of(capture), opaque=capture.opaque, packer=packer
            )
            for participant, program in programs.programs.items()
        }

    @classmethod
    def whole(cls, capture: Capture, *, fast: bool = True) -> InProcess:
        """The graph unsplit, on the coordinator alone."""
        return cls(capture, lower(home_plan(capture.graph), capture.graph), fast=fast)

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The graph's outputs by name. ``PlanError`` if the programs cannot finish."""
        with torch.inference_mode():
            runs = {
                participant: ProgramRun(loaded, inputs if participant == HOME else None)
                for participant, loaded in self.loaded.items()
            }
            waiting = list(runs)
            while waiting:
                sent: list[Piece] = []
                still = [participant for participant in waiting if not _advance(runs, participant, sent)]
                if len(still) == len(waiting) and not sent:
                    raise PlanError("deadlock: every participant waits")
                waiting = still
            return {name: runs[HOME].output(name) for name in self._capture.graph.outputs}

    def layer_maps(self, inputs: Mapping[str, Tensor]) -> dict[str, list[tuple[Need, Tensor]]]:
        """Every region of every layer's output that any participant computes, by layer."""
        maps: dict[str, list[tuple[Need, Tensor]]] = {}
        for loaded in self.loaded.values():
            loaded.watch = lambda piece, tensor: maps.setdefault(piece.tensor, []).append(
                (region_of(piece), tensor.clone())
            )
        try:
            self.run(inputs)
        finally:
            for loaded in self.loaded.values():
                loaded.watch = None
        return maps

    def __call__(self, *args: Any) -> Any:
        """The model's answer in its own structure."""
        return self._capture.unflatten(self.run(self._capture.flatten(args)))


def _advance(runs: Mapping[int, ProgramRun], participant: int, sent: list[Piece]) -> bool:
    """One participant's turn; notes in ``sent`` what it sent."""

    def send(piece: Piece, tensor: Tensor, target: int) -> None:
        sent.append(piece)
        runs[target].deliver(piece, participant, tensor)

    return runs[participant].advance(send)
