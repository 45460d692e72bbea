"""Every error that edgedi raises for a reason of its own.

A caller's wrong argument is a ``ValueError`` or ``TypeError``; everything else is an ``EdgediError``. Each says who,
what and where, and what would be accepted. Foreign exceptions are mapped once, in the module that imports the library.

At the end, words that errors of all rooms share.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any


class EdgediError(Exception):
    """Base of all errors below."""


class GraphError(EdgediError):
    """Capture met something that a LayerGraph cannot express."""

    def __init__(self, reason: str, *, layer: str | None = None, operator: str | None = None) -> None:
        self.layer, self.operator = layer, operator
        where = "".join(f" ({label} {value})" for label, value in (("layer", layer), ("operator", operator)) if value)
        super().__init__(reason + where)


class PlanError(EdgediError):
    """A plan or a program breaks a rule; ``grid`` is the printed plan or program with the bad place marked."""

    def __init__(
        self, reason: str, *, segment: int | None = None, worker: int | None = None, grid: str | None = None
    ) -> None:
        self.segment, self.worker, self.grid = segment, worker, grid
        parts = [reason]
        if segment is not None:
            parts.append(f"in segment {segment}")
        if worker is not None:
            parts.append(f"on worker {worker}")
        super().__init__(" ".join(parts) + (f"\n{grid}" if grid else ""))


class ProtocolError(EdgediError):
    """The conversation between two processes went wrong."""


class LocalProtocolError(ProtocolError):
    """This side tried to say something that it may not say: a bug of ours."""


class RemoteProtocolError(ProtocolError):
    """The other side sent bytes that mean nothing or are not allowed here."""


class WorkerLost(EdgediError):
    """A worker stopped answering, refused or failed."""

    def __init__(self, reason: str, *, worker: str | None = None, request: int | None = None) -> None:
        self.worker, self.request = worker, request
        super().__init__(reason)


class DeadlineExceeded(EdgediError):
    """A request did not finish in its time."""

    def __init__(self, reason: str, *, request: int | None = None, waited_s: float | None = None) -> None:
        self.request, self.waited_s = request, waited_s
        super().__init__(reason)


class SecurityError(EdgediError):
    """A key is missing, wrong or badly kept; the peer learns no more than the reason."""


class CompactionError(EdgediError):
    """A model cannot be made smaller, or what came out does not compute the same.

    Where it cannot be made as small as was asked for: ``best`` is the network that came nearest, with its
    ``compaction``, and ``curve`` are the networks on the way, each with ``macs`` and ``score``.
    """

    def __init__(self, reason: str, *, layer: str | None = None, best: Any = None, curve: Sequence[Any] = ()) -> None:
        self.layer, self.best, self.curve = layer, best, tuple(curve)
        super().__init__(reason + (f" (layer {layer})" if layer else ""))


class NotFinite(EdgediError, ValueError):
    """A metric gave something else than a finite number: of the original an error, of a network on the way a bad score.

    A ``ValueError`` as well: the metric is an argument.
    """


# --- words of errors --------------------------------------------------------------------------------------------------


def like(wrong: str, names: Iterable[str]) -> str:
    """What may have been meant, as the end of a sentence; nothing where no name is near."""
    close = difflib.get_close_matches(wrong, list(names), n=3)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def install(extra: str) -> str:
    """How to get what an extra of ours brings, whichever way edgedi itself was installed."""
    return f"pip install 'edgedi[{extra}]' (in a checkout: pip install '.[{extra}]')"
