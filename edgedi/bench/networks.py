"""Networks by the name given on the command line, with weights that are random and yet the same in every process."""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from edgedi.errors import like

SEED = 0
_SHORT = {"torchvision": "torchvision.models"}
"""Modules that need not be written in full."""


def load_network(name: str) -> nn.Module:
    """The network that ``module:callable`` returns when called without arguments, in evaluation mode.

    ``torchvision:NAME`` is short for ``torchvision.models:NAME``. Modules of the current folder are found too.
    ``ValueError`` says what of the name is wrong.
    """
    network = result_of(name, "--model")
    if not isinstance(network, nn.Module):
        raise ValueError(f"--model {name}: it returned {_type_of(network)}, not a torch.nn.Module")
    return network.eval()


def result_of(name: str, option: str) -> Any:
    """What ``module:callable`` returns; ``option`` is where the name was given, for errors."""
    build = _find(name, option)
    torch.manual_seed(SEED)
    try:
        return build()
    except Exception as error:  # a user's own code may raise anything
        reason = f"calling it without arguments raised {type(error).__name__}: {error}"
        raise ValueError(f"{option} {name}: {reason}") from error


def _find(name: str, option: str) -> Callable[[], Any]:
    module_name, _, attribute = name.partition(":")
    forms = "torchvision:NAME or module:callable" if option == "--model" else "module:callable"
    if not module_name or not attribute:
        near = _in_torchvision(name) if option == "--model" else ""
        raise ValueError(f"{option} {name!r}: write {forms}{near}")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    module_name = _SHORT.get(module_name, module_name)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # it may be a user's own code
        near = like(module_name, (found.name for found in pkgutil.iter_modules()))
        reason = f"{type(error).__name__}: {error}{near if isinstance(error, ImportError) else ''}"
        raise ValueError(f"{option} {name}: module {module_name} does not import: {reason}") from error
    if not hasattr(module, attribute):
        near = like(attribute, (each for each in dir(module) if not each.startswith("_")))
        raise ValueError(f"{option} {name}: {module_name} has no {attribute!r}{near}")
    found = getattr(module, attribute)
    if not callable(found):
        raise ValueError(f"{option} {name}: {attribute!r} of {module_name} is {_type_of(found)}, not callable")
    return cast(Callable[[], Any], found)


def _type_of(value: object) -> str:
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def _in_torchvision(name: str) -> str:
    """Whether a name without a module is one of torchvision's, as the end of a sentence."""
    try:
        known = callable(getattr(importlib.import_module(_SHORT["torchvision"]), name, None))
    except Exception:  # it is optional, and one that is broken is not what is asked about
        return ""
    return f"; did you mean torchvision:{name}?" if known else ""


def random_input(shape: tuple[int, ...]) -> Tensor:
    """Normally distributed float32 numbers, the same for the same shape."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(SEED))
