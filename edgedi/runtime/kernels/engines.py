"""The engines that a worker may let compute chains of layers."""

from __future__ import annotations

from edgedi.runtime.kernels import onnxruntime_graph, openvino_graph
from edgedi.runtime.kernels.group import Engine

ENGINES = (openvino_graph.ENGINE, onnxruntime_graph.ENGINE)


def installed_engines() -> tuple[Engine, ...]:
    """Those that are there, in the order in which they are asked."""
    return tuple(engine for engine in ENGINES if engine.is_installed)
