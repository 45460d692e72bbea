"""The version of this software, as messages and ``--version`` tell it."""

from importlib.metadata import PackageNotFoundError, version


def software_version() -> str:
    """Version of the installed package; ``0+unknown`` in a tree that is not installed."""
    try:
        return version("edgedi")
    except PackageNotFoundError:
        return "0+unknown"
