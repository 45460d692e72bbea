"""How the command lines read their options."""

from __future__ import annotations

import argparse
from collections.abc import Sequence


def positive(text: str) -> int:
    """A whole number from 1 up."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 up")
    return int(text)


def shapes(text: str) -> tuple[tuple[int, ...], ...]:
    """``1x3x224x224,1x10``: the shapes of several inputs."""
    found = tuple(tuple(part.split("x")) for part in text.split(","))
    if not all(length.isdecimal() and int(length) > 0 for shape in found for length in shape):
        raise argparse.ArgumentTypeError(f"{text!r} is not a shape such as 1x3x224x224, or several joined by commas")
    return tuple(tuple(int(length) for length in shape) for shape in found)


def names(text: str, accepted: Sequence[str]) -> tuple[str, ...]:
    """Some of the names that are accepted, each once."""
    found = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    for name in found:
        if name not in accepted:
            raise argparse.ArgumentTypeError(f"there is no {name!r}; accepted are {', '.join(accepted)}")
    return found
