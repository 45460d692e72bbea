"""Which RUN instructions may write their result over an input: the residual of a convolution that nobody reads again.

Writing in place saves memory, and the time to bring the result's own memory into the cache. It is allowed only where
nothing else can see the memory. The residual must be

* made by this program: by a convolution or a JOIN, whose results are memory of their own, not views of something else
  (what was received lies in the transport's memory, and what a caller gave is the caller's);
* read for the last time, once, and be no output of the graph;
* read before by convolutions, pools and JOINs only, whose results are not views of it;
* never sent: a large piece may still be in the transport's hands when SEND has returned.
"""

from __future__ import annotations

from collections import Counter

from edgedi.partition.graph.graph import LayerGraph
from edgedi.partition.plan.program import Join, Piece, Program, Recv, Run, Send

_COPYING = frozenset({"conv", "conv_transpose", "max_pool", "avg_pool"})
"""Operators whose kernels never return a view of an input."""


def overwriting(program: Program, graph: LayerGraph) -> frozenset[Piece]:
    """The pieces that their RUN may write over the residual that it reads."""
    last_reader, fresh, pinned = _lives(program, graph)
    return frozenset(
        run.piece
        for index, run in enumerate(program.instructions)
        if isinstance(run, Run)
        and graph.by_name[run.piece.tensor].attributes.get("residual")
        and len(run.inputs) == 2
        and run.inputs[1] in fresh - pinned
        and last_reader[run.inputs[1]] == index
        and Counter(run.inputs)[run.inputs[1]] == 1
    )


def _lives(program: Program, graph: LayerGraph) -> tuple[dict[Piece, int], set[Piece], set[Piece]]:
    """Of every piece: who reads it last, whether its memory is its own, whether somebody may hold on to it."""
    last_reader: dict[Piece, int] = {}
    fresh: set[Piece] = set()
    pinned: set[Piece] = set()
    for index, instruction in enumerate(program.instructions):
        match instruction:
            case Send(held=held):
                pinned.add(held)
            case Join(piece=piece, sources=sources):
                fresh.add(piece)
                last_reader.update(dict.fromkeys(sources, index))
            case Run(piece=piece, inputs=inputs):
                op = graph.by_name[piece.tensor].op
                last_reader.update(dict.fromkeys(inputs, index))
                if op == "conv":
                    fresh.add(piece)
                if op not in _COPYING:
                    pinned.update(inputs)
                if piece.tensor in graph.outputs:
                    pinned.add(piece)
            case Recv():
                pass
    return last_reader, fresh, pinned
