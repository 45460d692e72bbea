"""ATen operators as rows of the operator table: one handler per family.

A handler takes a ``Call`` (the node's arguments by schema name, resolved) and returns the symbol it made, a list of
symbols for operators with several outputs, or ``None`` where this use of the operator is not expressible: then it
becomes opaque. ``HANDLERS`` maps the printed name of the exported target to its handler.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from edgedi.partition.capture.aten import elements, shapes, windows
from edgedi.partition.capture.aten.call import Call, Handler

__all__ = ["DROPOUTS", "HANDLERS", "IDENTITIES", "Call"]

HANDLERS: Mapping[str, Handler] = MappingProxyType({**windows.HANDLERS, **elements.HANDLERS, **shapes.HANDLERS})

IDENTITIES = frozenset(
    "aten.alias.default aten.detach.default aten.clone.default aten.contiguous.default "
    "aten.lift_fresh_copy.default aten.detach_.default".split()
)
"""Operators that pass their first argument on unchanged."""
DROPOUTS = frozenset(
    "aten.dropout.default aten.feature_dropout.default aten.alpha_dropout.default "
    "aten.feature_alpha_dropout.default".split()
)
"""Operators that do so unless their last argument, ``train``, is true."""
