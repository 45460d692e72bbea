"""Where specs are: the ready ones come with the package, so that an installed command knows them; others are files."""

from __future__ import annotations

import sys
from pathlib import Path

from edgedi.bench.testbed.spec import Spec, parse_rate, spec_of
from edgedi.errors import like

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = Path(__file__).parent.parent / "specs"


def ready_specs() -> tuple[str, ...]:
    """Names of the specs that come with the package."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.toml")))


def parse_spec(text: str, *, name: str) -> Spec:
    """The testbed that TOML ``text`` describes; ``ValueError`` for what is none, see ``spec_of``."""
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"testbed {name}: this is no TOML: {error}") from None
    return spec_of(values, name=name)


def find_spec(text: str) -> Spec:
    """The spec ``NAME`` or ``FILE.toml``, as ``NAME@RATE`` with links of another rate such as ``100M``.

    ``ValueError`` names what there is for one that is not there, and what is wrong with one that is.
    """
    place, mark, rate = text.partition("@")
    path = Path(place) if place.endswith(".toml") else FOLDER / f"{place}.toml"
    if not place.endswith(".toml") and place not in ready_specs():
        known = f"ready ones are {', '.join(ready_specs())}, your own is FILE.toml"
        raise ValueError(f"there is no testbed {place!r}: {known}{like(place, ready_specs())}")
    try:
        spec = parse_spec(path.read_text(encoding="utf-8"), name=text)
    except OSError as error:
        raise ValueError(f"testbed {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"testbed {path}: this is no text") from None
    if not mark:
        return spec
    try:
        return spec.with_rate(parse_rate(rate))
    except ValueError as error:
        raise ValueError(f"testbed {text}: {error}") from None
