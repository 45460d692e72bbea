"""Blocks fitted to all the layers that could give way, and kept as plain values meanwhile."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from edgedi.transforms.replace.block import stand_in
from edgedi.transforms.replace.candidates import Candidate, Option
from edgedi.transforms.replace.fit import Fitted, fit
from edgedi.transforms.replace.record import record
from edgedi.transforms.task import Task

AT_ONCE = 4
"""Layers whose inputs are recorded in one pass, and held in memory at a time."""
FITTING = 0.25
"""The share of the time left that fitting may take; layers that save most come first."""

Fits = dict[str, dict[int, Fitted]]
"""By name, then by ratio."""


def fit_all(
    model: nn.Module, found: Sequence[Candidate], task: Task, known: Fits, keep: Callable[[Fits], None]
) -> Fits:
    """Those of ``known``, and of the layers that are not in it, as far as time allows; the first pass always.

    ``keep`` is called with what there is after each fit.
    """
    fits = {name: dict(by_ratio) for name, by_ratio in known.items()}
    left = sorted(found, key=lambda candidate: -max(candidate.saved.values()))
    left = [candidate for candidate in left if set(candidate.saved) - set(fits.get(candidate.name, ()))]
    enough_s = task.budget.left_s * (1 - FITTING)
    while left:
        if fits and task.budget.left_s < enough_s:
            task.say(f"scar: no time to fit {len(left)} of {len(found)} layers, which save least")
            break
        some, left = left[:AT_ONCE], left[AT_ONCE:]
        for name, ratio, fitted in _fits_of(model, some, task, fits):
            fits.setdefault(name, {})[ratio] = fitted
            keep(fits)
    return fits


def _fits_of(model: nn.Module, some: Sequence[Candidate], task: Task, known: Fits) -> Iterator[tuple[str, int, Fitted]]:
    """Of each layer of ``some``, one ratio after another, those that are not ``known``."""
    data: Any = task.train or task.calibration
    inputs = record(model, [candidate.name for candidate in some], data, task.seed)
    for candidate, x in zip(some, inputs, strict=True):
        for ratio, macs in candidate.saved.items():
            if ratio in known.get(candidate.name, ()):
                continue
            fitted = fit(model.get_submodule(candidate.name), x, ratio, seed=task.seed)
            errors = f"error {fitted.start_error:.2g} -> {fitted.error:.2g}"
            task.say(f"scar: {candidate.name} at 1/{ratio} saves {macs:,} MACs, {errors}")
            yield candidate.name, ratio, fitted


def options_of(found: Sequence[Candidate], fits: Fits) -> list[Option]:
    """What could be put in."""
    return [
        Option(
            name=candidate.name,
            ratio=ratio,
            saved=candidate.saved[ratio],
            error=fitted.error,
            saved_parameters=candidate.saved_parameters[ratio],
        )
        for candidate in found
        for ratio, fitted in fits.get(candidate.name, {}).items()
    ]


def with_blocks(model: nn.Module, ratios: Mapping[str, int], fits: Fits) -> nn.Module:
    """A copy of ``model`` with the fitted blocks of ``ratios``."""
    small = copy.deepcopy(model)
    for name, ratio in ratios.items():
        small.set_submodule(name, copy.deepcopy(fits[name][ratio].block))
    return small


def plain_of(fits: Fits) -> dict[str, Any]:
    """For a checkpoint."""
    return {
        name: {
            ratio: {"weights": one.block.state_dict(), "start_error": one.start_error, "error": one.error}
            for ratio, one in by_ratio.items()
        }
        for name, by_ratio in fits.items()
    }


def fits_of(model: nn.Module, plain: Mapping[str, Any]) -> Fits:
    """The opposite of ``plain_of``, for the layers of ``model``."""
    return {
        name: {ratio: _fitted(model.get_submodule(name), ratio, dict(one)) for ratio, one in by_ratio.items()}
        for name, by_ratio in plain.items()
    }


def _fitted(convolution: Any, ratio: int, plain: dict[str, Any]) -> Fitted:
    block = stand_in(convolution, ratio)
    block.load_state_dict(plain.pop("weights"))
    return Fitted(block=block, **plain)
