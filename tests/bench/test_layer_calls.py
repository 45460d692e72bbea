"""Layers as a worker runs them, one call for each."""

from __future__ import annotations

import torch

from bench.layer_calls import layer_calls
from edgedi.partition.capture.capture import capture_model
from edgedi.partition.graph.geometry import Interval
from edgedi.partition.plan.program import Piece, Program, Run


def test_every_part_is_one_call():
    captured = capture_model(torch.nn.Conv2d(3, 4, 1).eval(), (torch.randn(1, 3, 16, 16),))
    (name,), (layer,) = captured.graph.inputs, captured.graph.layers

    def rows(start: int, stop: int) -> Run:
        return Run(Piece(layer.name, 2, Interval(start, stop)), (Piece(name, 2, Interval(start, stop)),))

    program = Program(participant=0, instructions=(rows(0, 8), rows(7, 8), rows(0, 7)))
    assert [call().shape for call in layer_calls(program, captured)] == [(1, 4, n, 16) for n in (8, 1, 7)]
