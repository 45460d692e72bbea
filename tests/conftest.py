"""What tests of every room share."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

DATA = Path(os.environ.get("EDGEDI_DATA", Path(__file__).parent.parent.parent / "shared" / "data"))
"""Real images and pretrained networks; see CONTRIBUTING.md."""


def pytest_report_header() -> str:
    there = "found" if DATA.is_dir() else "MISSING, tests marked data are skipped"
    return f"real images and networks: {DATA} ({there})"


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real data, its loaders importable. Skips only where there is no folder at all."""
    if not DATA.is_dir():
        pytest.skip(f"no real images and networks at {DATA}; set EDGEDI_DATA to where they are")
    loaders = str(DATA / "loaders")
    if loaders not in sys.path:
        sys.path.insert(0, loaders)
    return DATA
