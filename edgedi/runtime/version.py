"""The version of this software, as messages and ``--version`` tell it."""

from functools import cache
from importlib.metadata import PackageNotFoundError, version


@cache  # it is read from disk, and every greeting of a worker says it
def software_version() -> str:
    """Version of the installed package; ``0+unknown`` in a tree that is not installed."""
    try:
        return version("edgedi")
    except PackageNotFoundError:
        return "0+unknown"
