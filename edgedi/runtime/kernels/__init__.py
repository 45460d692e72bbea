"""How layers are computed: ``prepare`` turns one RUN instruction into a function of tensors."""

from edgedi.runtime.kernels.prepare import Kernel, Task, prepare

__all__ = ["Kernel", "Task", "prepare"]
