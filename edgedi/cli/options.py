"""How the command lines read their options."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from edgedi.errors import like


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


def names(text: str, what: str, accepted: Sequence[str]) -> tuple[str, ...]:
    """Some of the names that are accepted, each once; ``what`` is one of them."""
    found = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    for name in found:
        if name not in accepted:
            known = f"accepted are {', '.join(accepted)}{like(name, accepted)}"
            raise argparse.ArgumentTypeError(f"there is no {what} {name!r}; {known}")
    return found
