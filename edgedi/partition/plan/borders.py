"""Border rows first: a RUN of which others wait for a border is made in parts, so that the border travels meanwhile.

    RUN conv2@2[0:28] <- ...                    RUN conv2@2[26:28] <- ...
    SEND conv2@2[27:28] of conv2@2[0:28] to 1   SEND conv2@2[27:28] of conv2@2[26:28] to 1
                                                RUN conv2@2[0:26] <- ...
    RECV conv2@2[28:29] from 1                  RECV conv2@2[28:29] from 1
    JOIN conv2@2[0:29] <- conv2@2[0:28] ...     JOIN conv2@2[0:29] <- conv2@2[0:26] conv2@2[26:28] ...

Nothing is computed twice and nothing copied that was not before: only pieces that are sent in part and otherwise joined
are made so, and the JOIN takes the parts as well. What comes right before such a layer and is read by it alone is made
in the same parts, as long as these do not overlap: a pooling's border leaves before the convolution's rest is computed.
Whether that pays is another question: two calls take longer than one (``cost.overlap``).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from edgedi.partition.graph.geometry import Interval, Region
from edgedi.partition.graph.graph import LayerGraph
from edgedi.partition.graph.operators import needs
from edgedi.partition.plan.plan import HOME
from edgedi.partition.plan.program import Instruction, Join, Piece, Program, Recv, Run, Send

IN_PARTS = frozenset({"conv", "max_pool", "avg_pool", "unary", "affine", "prelu", "binary"})
"""Operators that are made in parts: a row of theirs takes as long beside others as alone, but for the call."""
_FIRST_SPATIAL_DIM = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Border:
    """One way to make ``piece`` in parts.

    ``wholes`` are the RUNs that this replaces, in order; ``parts`` the pieces along its dimension, ``chains[k]`` the
    RUNs that make ``parts[k]``; ``first`` are the numbers of the parts that are sent.
    """

    piece: Piece
    sends: tuple[Send, ...]
    wholes: tuple[Run, ...]
    parts: tuple[Piece, ...]
    chains: tuple[tuple[Run, ...], ...]
    first: frozenset[int]

    @property
    def rest(self) -> tuple[Run, ...]:
        """What is computed while the borders travel."""
        return tuple(run for k, chain in enumerate(self.chains) if k not in self.first for run in chain)

    @property
    def instructions(self) -> tuple[Instruction, ...]:
        """What stands in the place of the last of ``wholes`` and of the sends."""
        made = [run for k in sorted(self.first) for run in self.chains[k]]
        return (*made, *(replace(send, held=self._holding(send.piece)) for send in self.sends), *self.rest)

    def _holding(self, sent: Piece) -> Piece:
        return next(part for part in self.parts if part.interval.contains(sent.interval))


def borders(program: Program, graph: LayerGraph) -> Iterator[tuple[Border, ...]]:
    """Of every piece that can be made with its borders first: the ways, from its own layer alone to ever longer chains
    of layers before it."""
    lives = _Lives(program, graph)
    for piece in lives.made:
        if (ways := tuple(_ways(lives, piece))) != ():
            yield ways


def with_borders_first(program: Program, chosen: Iterable[Border]) -> Program:
    """``program`` with pieces made as ``chosen``, at most one way for each RUN."""
    by_piece = {border.piece: border for border in chosen}
    gone = {run.piece for border in by_piece.values() for run in border.wholes}
    made: list[Instruction] = []
    for instruction in program.instructions:
        match instruction:
            case Run(piece=piece) if piece in by_piece:
                made.extend(by_piece[piece].instructions)
            case Run(piece=piece) if piece in gone:
                continue
            case Send(held=held) if held in by_piece:
                continue
            case Join():
                made.append(_joined(instruction, by_piece))
            case _:
                made.append(instruction)
    return replace(program, instructions=tuple(made))


def _joined(join: Join, by_piece: Mapping[Piece, Border]) -> Join:
    """The same from parts; those of which nothing is needed beside what comes before them are left out."""
    sources, position = list[Piece](), join.piece.interval.start
    for source in join.sources:
        for part in by_piece[source].parts if source in by_piece else (source,):
            if position < part.interval.stop and part.interval.start < join.piece.interval.stop:
                sources.append(part)
                position = part.interval.stop
    return replace(join, sources=tuple(sources))


class _Lives:
    """Who makes each piece of a program, and who reads it."""

    def __init__(self, program: Program, graph: LayerGraph) -> None:
        self.graph = graph
        self.made: dict[Piece, Run] = {}
        self.readers: dict[Piece, list[Instruction]] = defaultdict(list)
        for instruction in program.instructions:
            match instruction:
                case Run(piece=piece, inputs=inputs):
                    self.made[piece] = instruction
                    read: Sequence[Piece] = inputs
                case Join(sources=sources):
                    read = sources
                case Send(held=held):
                    read = (held,)
                case Recv():
                    read = ()
            for piece in read:
                self.readers[piece].append(instruction)

    def can_be_parted(self, piece: Piece) -> bool:
        """Whether its RUN is one that makes rows of a map."""
        run = self.made.get(piece)
        return (
            run is not None
            and run.over is None
            and piece.dim >= _FIRST_SPATIAL_DIM
            and self.graph.by_name[piece.tensor].op in IN_PARTS
            and piece.tensor not in self.graph.outputs
        )


def _ways(lives: _Lives, piece: Piece) -> Iterator[Border]:
    readers = lives.readers[piece]
    sends = tuple(reader for reader in readers if isinstance(reader, Send))
    others = [reader for reader in readers if not isinstance(reader, (Send, Join))]
    if not sends or others or not lives.can_be_parted(piece):
        return
    if any(send.target == HOME or send.piece.dim != piece.dim for send in sends):
        return
    cut = _cut(piece.interval, [send.piece.interval for send in sends])
    if cut is None:
        return
    intervals, first = cut
    wholes, chains = list[Run](), [list[Run]() for _ in intervals]
    current = lives.made[piece]
    while True:
        deeper = _deeper(lives, current, intervals)
        parts = [Piece(current.piece.tensor, piece.dim, interval) for interval in intervals]
        wholes.insert(0, current)
        yield Border(
            piece=piece,
            sends=sends,
            wholes=tuple(wholes),
            parts=tuple(Piece(piece.tensor, piece.dim, interval) for interval in cut[0]),
            chains=tuple((Run(part, current.inputs), *chain) for part, chain in zip(parts, chains, strict=True)),
            first=first,
        )
        if deeper is None:
            return
        before = current.inputs[0]
        for part, chain, interval in zip(parts, chains, deeper, strict=True):
            read = Piece(before.tensor, before.dim, interval)
            chain.insert(0, Run(part, (read, *current.inputs[1:])))
        current, intervals = lives.made[before], deeper


def _cut(whole: Interval, sent: Sequence[Interval]) -> tuple[list[Interval], frozenset[int]] | None:
    """``whole`` in parts, and which of them hold what is sent; ``None`` where that leaves nothing, or is no border."""
    above = [interval for interval in sent if interval.start == whole.start]
    below = [interval for interval in sent if interval.start != whole.start]
    if any(interval.stop != whole.stop for interval in below):
        return None
    start = max((interval.stop for interval in above), default=whole.start)
    stop = min((interval.start for interval in below), default=whole.stop)
    if start >= stop:
        return None
    edges = sorted({whole.start, start, stop, whole.stop})
    parts = [Interval(*pair) for pair in pairwise(edges)]
    return parts, frozenset(k for k, part in enumerate(parts) if part.start != start)


def _deeper(lives: _Lives, run: Run, intervals: Sequence[Interval]) -> list[Interval] | None:
    """What each part reads of the RUN before, where that is made for this one alone, and nothing of it twice."""
    before, layer = run.inputs[0], lives.graph.by_name[run.piece.tensor]
    if lives.readers[before] != [run] or Counter(run.inputs)[before] != 1 or not lives.can_be_parted(before):
        return None
    if before.dim != run.piece.dim:
        return None
    shapes = lives.graph.input_shapes(layer)
    read: list[Interval] = []
    for interval in intervals:
        parts = needs(layer, shapes, Region(run.piece.dim, interval))
        need = parts[0] if parts is not None else None
        if need is None or need.dim != before.dim or not before.interval.contains(need.interval):
            return None
        read.append(need.interval)
    return read if all(a.stop <= b.start for a, b in pairwise(read)) else None
