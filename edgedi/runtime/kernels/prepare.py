"""RUN instruction -> function: narrow each input to what is read, then the fused kernel if there is one, else eager.

Where a fused convolution is slower than the same one by Winograd's algorithm, the latter.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from edgedi.errors import LocalProtocolError
from edgedi.partition.graph.graph import LayerGraph
from edgedi.partition.graph.operators import needs
from edgedi.partition.plan.program import Run
from edgedi.partition.plan.simulate import region_of
from edgedi.runtime.kernels import eager, fused, winograd
from edgedi.runtime.kernels.task import Kernel, Task

__all__ = ["Kernel", "Task", "prepare", "task_of"]


def prepare(
    run: Run,
    graph: LayerGraph,
    weights: Mapping[str, Tensor],
    packer: fused.Packer | None,
    *,
    overwrite: bool = False,
) -> Kernel:
    """The function of the held input tensors that makes ``run.piece``.

    ``weights`` maps the layer's roles to tensors already cut for this run; with no ``packer`` all runs on plain torch.
    With ``overwrite`` the result may be written over the residual.
    """
    task = task_of(run, graph, weights, overwrite=overwrite)
    kernel = _fused(task, packer) if packer is not None else None
    return _with_cuts(kernel or eager.make(task), task)


def _fused(task: Task, packer: fused.Packer) -> Kernel | None:
    direct = fused.make(task, packer)
    return None if direct is None else winograd.make(task, packer, direct) or direct


def task_of(run: Run, graph: LayerGraph, weights: Mapping[str, Tensor], *, overwrite: bool = False) -> Task:
    """Everything about a RUN that is fixed before the first request."""
    layer = graph.by_name[run.piece.tensor]
    shapes = graph.input_shapes(layer)
    out = region_of(run.piece)
    is_part = layer.op == "partial" and run.over is not None
    parts = (run.over,) if is_part else needs(layer, shapes, out)
    if parts is None:
        raise LocalProtocolError(f"{layer.name} cannot make {run.piece}")
    return Task(
        layer=layer, shapes=shapes, out=None if is_part else out, parts=parts, pieces=run.inputs, weights=weights,
        overwrite=overwrite,
    )  # fmt: skip


def _with_cuts(kernel: Kernel, task: Task) -> Kernel:
    """Wrap ``kernel`` so that it sees exactly the parts it reads; inputs of which nothing is read are dropped."""
    present = [index for index in range(len(task.parts)) if task.present(index)]
    cuts = [task.cut(index) for index in present]
    if len(present) == len(task.parts):
        if not any(cuts):
            return kernel
        if len(cuts) == 1:
            dim, start, length = cuts[0] or (0, 0, 0)
            return lambda x: kernel(x.narrow(dim, start, length))

    def run(*held: Tensor) -> Tensor:
        tensors = (held[index] for index in present)
        return kernel(*(t if c is None else t.narrow(*c) for t, c in zip(tensors, cuts, strict=True)))

    return run
