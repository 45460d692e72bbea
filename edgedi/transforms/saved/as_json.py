"""What compaction did, as JSON: every number of the report."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any

from edgedi.transforms.report import Compaction, LayerChange, Step
from edgedi.transforms.score import Score
from edgedi.transforms.size import LayerSize, Size

FORMAT, VERSION = "edgedi-compaction", 1


def compaction_json(compaction: Compaction) -> str:
    """The report as text. What is no finite number, and a score that nobody took, are ``null``."""
    return json.dumps(
        {
            "format": FORMAT,
            "version": VERSION,
            "difference": _finite(compaction.difference),
            "score": _score(compaction.score),
            "steps": [_step(step) for step in compaction.steps],
            "layers": [_layer(layer) for layer in compaction.layers],
            "curve": [asdict(point) for point in compaction.curve],
        },
        indent=1,
        allow_nan=False,
    )


def _step(step: Step) -> dict[str, Any]:
    return {
        "name": step.name,
        "before": _size(step.before),
        "after": _size(step.after),
        "difference": _finite(step.difference),
        "score": _score(step.score),
        "seconds": step.seconds,
        "training_steps": step.training_steps,
        "note": step.note,
        "left_alone": list(step.left_alone),
    }


def _layer(change: LayerChange) -> dict[str, Any]:
    before, after = change.before, change.after
    return {
        "name": before.name,
        "kind": before.kind,
        "before": _layer_size(before),
        "after": None if after is None else _layer_size(after),
    }


def _layer_size(layer: LayerSize) -> dict[str, Any]:
    return {"width": layer.width, **_size(layer.size)}


def _size(size: Size) -> dict[str, int]:
    return {"parameters": size.parameters, "macs": size.macs, "bytes": size.num_bytes}


def _score(score: Score | None) -> dict[str, Any] | None:
    if score is None:
        return None
    low, high = score.interval or (None, None)
    return {"value": _finite(score.value), "count": score.count, "low": low, "high": high}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
