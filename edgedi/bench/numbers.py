"""From seconds to what a table says of them. Pure: the same seconds give the same numbers, resampling included."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
CONFIDENCE = 0.95
_SEED = 20240607


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Seconds of one contender over the rounds; ``low_s`` and ``high_s`` hold the middle half of them."""

    median_s: float
    min_s: float
    low_s: float
    high_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """How many times as fast, with the 95 % interval: the median of the ratios within each round, if there are such."""

    median: float
    low: float
    high: float


def spread(seconds: Sequence[float]) -> Spread:
    """What ``seconds``, one number per round, say together. ``ValueError`` if there are none."""
    if not seconds:
        raise ValueError("no seconds were measured")
    low, high = np.quantile(seconds, (0.25, 0.75))
    return Spread(median_s=statistics.median(seconds), min_s=min(seconds), low_s=float(low), high_s=float(high))


def times_as_fast(seconds: Sequence[float], base: Sequence[float]) -> Ratio:
    """How many times as fast as ``base`` a contender was, round by round.

    A pair of one round shares what the machine was doing at the time: a disturbance is on both sides of its ratio.
    The interval is a percentile bootstrap of the median (Efron 1979), seeded.
    """
    if len(seconds) != len(base) or not seconds:
        raise ValueError(f"{len(seconds)} and {len(base)} rounds make no pairs")
    ratios = np.asarray(base, dtype=float) / np.asarray(seconds, dtype=float)
    return _ratio(float(np.median(ratios)), _medians(ratios, np.random.default_rng(_SEED)))


def apart_times_as_fast(seconds: Sequence[float], base: Sequence[float]) -> Ratio:
    """How many times as fast as ``base`` a contender was that ran in rounds of its own: the ratio of the medians.

    Nothing is paired, so each side is resampled for itself: what the machine did at the time is in the interval, as
    far as it changed within the rounds. Of few rounds (six) it is somewhat too narrow.
    """
    if not seconds or not base:
        raise ValueError("no seconds were measured")
    generator = np.random.default_rng(_SEED)
    mine, theirs = (np.asarray(each, dtype=float) for each in (seconds, base))
    ratios = _medians(theirs, generator) / _medians(mine, generator)
    return _ratio(float(np.median(theirs) / np.median(mine)), ratios)


def _medians(values: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Of resamples."""
    return np.asarray(np.median(values[generator.integers(0, len(values), size=(RESAMPLES, len(values)))], axis=1))


def _ratio(median: float, resampled: np.ndarray) -> Ratio:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(resampled, (tail, 1 - tail))
    return Ratio(median=median, low=float(low), high=float(high))
