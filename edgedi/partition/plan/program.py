"""Program: what one participant does for one request, an instruction a line of text, in order.

    RECV x@2[0:115] from home
    RUN conv1@2[0:56] <- x@2[0:115]
    SEND conv1@2[54:56] of conv1@2[0:56] to 1
    JOIN conv1@2[0:57] <- conv1@2[0:56] conv1@2[56:57]

A *piece* is the part of a tensor that a participant holds: ``conv1@2[0:56]`` is rows 0 to 55 along dimension 2, plain
``conv1`` is all of it. Receiving blocks, sending does not. Text parses back to the same program.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from edgedi.partition.graph.geometry import Interval, Region
from edgedi.partition.graph.graph import LayerGraph
from edgedi.partition.plan.plan import HOME

UNIT = Interval(0, 1)
UNSPLIT = -1
"""``Piece.dim`` of a tensor held whole as one indivisible unit."""


@dataclass(frozen=True, slots=True)
class Piece:
    """``interval`` of ``tensor`` along ``dim``; unsplit pieces have dimension -1 and interval 0:1."""

    tensor: str
    dim: int = UNSPLIT
    interval: Interval = UNIT

    def __str__(self) -> str:
        return self.tensor if self.dim == UNSPLIT else f"{self.tensor}@{self.dim}[{self.interval}]"

    @classmethod
    def parse(cls, text: str) -> Piece:
        match = re.fullmatch(r"([^@\s\[\]]+)(?:@(\d+)\[(\d+:\d+)\])?", text)
        if not match:
            raise ValueError(f"{text!r} is not a piece; write tensor or tensor@dim[start:stop]")
        return cls(match[1]) if match[2] is None else cls(match[1], int(match[2]), Interval.parse(match[3]))

    def holds(self, dim: int, interval: Interval, length: int) -> bool:
        """Whether this piece has ``interval`` along ``dim``; the tensor is ``length`` long along the *piece's* dim."""
        return (
            self.dim == UNSPLIT
            or len(self.interval) == length
            or (self.dim == dim and self.interval.contains(interval))
        )


@dataclass(frozen=True, slots=True)
class Recv:
    """Wait for ``piece`` from participant ``source``."""

    piece: Piece
    source: int

    def __str__(self) -> str:
        return f"RECV {self.piece} from {participant_name(self.source)}"


@dataclass(frozen=True, slots=True)
class Send:
    """Send ``piece``, cut from the held piece ``held``, to participant ``target``."""

    piece: Piece
    held: Piece
    target: int

    def __str__(self) -> str:
        return f"SEND {self.piece} of {self.held} to {participant_name(self.target)}"


@dataclass(frozen=True, slots=True)
class Join:
    """Put ``piece`` together from neighbouring or overlapping held ``sources``, in order."""

    piece: Piece
    sources: tuple[Piece, ...]

    def __str__(self) -> str:
        return f"JOIN {self.piece} <- {' '.join(map(str, self.sources))}"


@dataclass(frozen=True, slots=True)
class Run:
    """Compute ``piece`` of the layer named by its tensor from held ``inputs``.

    ``over`` is the part of the input that a partial reduction adds up (its own share: no element twice).
    """

    piece: Piece
    inputs: tuple[Piece, ...]
    over: Region | None = None

    def __str__(self) -> str:
        over = f" over {self.over.dim}[{self.over.interval}]" if self.over else ""
        return f"RUN {self.piece} <- {' '.join(map(str, self.inputs))}".rstrip() + over


Instruction = Recv | Send | Join | Run


def participant_name(participant: int) -> str:
    """How programs write a participant."""
    return "home" if participant == HOME else str(participant)


def parse_participant(text: str) -> int:
    """The participant that ``participant_name`` wrote."""
    return HOME if text == "home" else int(text)


def _parse_run(rest: str) -> Run:
    body, _, over_text = rest.partition(" over ")
    target, _, inputs = body.partition(" <-")
    over = None
    if over_text:
        dim, _, interval = over_text.rstrip("]").partition("[")
        over = Region(int(dim), Interval.parse(interval))
    return Run(Piece.parse(target), tuple(map(Piece.parse, inputs.split())), over)


def _parse_recv(rest: str) -> Recv:
    piece, _, source = rest.partition(" from ")
    return Recv(Piece.parse(piece), parse_participant(source))


def _parse_send(rest: str) -> Send:
    body, _, target = rest.partition(" to ")
    piece, _, held = body.partition(" of ")
    return Send(Piece.parse(piece), Piece.parse(held), parse_participant(target))


def _parse_join(rest: str) -> Join:
    piece, _, sources = rest.partition(" <- ")
    return Join(Piece.parse(piece), tuple(map(Piece.parse, sources.split())))


_PARSERS: Mapping[str, Callable[[str], Instruction]] = {
    "RUN": _parse_run,
    "RECV": _parse_recv,
    "SEND": _parse_send,
    "JOIN": _parse_join,
}


def parse_instruction(line: str) -> Instruction:
    """One line of a program. ``ValueError`` for what is not one."""
    word, _, rest = line.strip().partition(" ")
    if word not in _PARSERS:
        raise ValueError(f"{line!r} is not an instruction; lines begin with {', '.join(_PARSERS)}")
    return _PARSERS[word](rest)


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """The instructions of one participant."""

    participant: int
    instructions: tuple[Instruction, ...]

    def __str__(self) -> str:
        return "\n".join([f"program {participant_name(self.participant)}", *map(str, self.instructions)])

    @property
    def layer_names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(i.piece.tensor for i in self.instructions if isinstance(i, Run)))

    @classmethod
    def parse(cls, text: str) -> Program:
        head, *lines = [line for line in text.strip().splitlines() if line.strip()]
        word, _, participant = head.partition(" ")
        if word != "program":
            raise ValueError(f"{head!r} does not begin a program; write 'program home' or 'program 0'")
        return cls(participant=parse_participant(participant), instructions=tuple(map(parse_instruction, lines)))


@dataclass(frozen=True, kw_only=True)
class ProgramSet:
    """The programs of all participants of one plan, with the graph that they run."""

    graph: LayerGraph
    programs: Mapping[int, Program]
    plan_digest: str = ""

    def __str__(self) -> str:
        return "\n\n".join(str(self.programs[p]) for p in sorted(self.programs))

    def answers_alone(self, participant: int) -> bool:
        """Whether one worker makes all outputs of all inputs: a request needs nobody else."""
        instructions = self.programs[participant].instructions
        taken = {(i.piece, i.source) for i in instructions if isinstance(i, Recv)}
        given = {(i.piece, i.target) for i in instructions if isinstance(i, Send)}
        inputs, outputs = ({(Piece(name), HOME) for name in names} for names in (self.graph.inputs, self.graph.outputs))
        return taken <= inputs and given == outputs

    @property
    def digest(self) -> str:
        return hashlib.sha256(f"{self.graph.digest}\n{self}".encode()).hexdigest()
