"""What tests of every room share."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.pretrained import DATA, data_folder


def pytest_report_header() -> str:
    there = "found" if DATA.is_dir() else "MISSING, tests marked data are skipped"
    return f"real images and networks: {DATA} ({there})"


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real data, its loaders importable. Skips only where there is no folder at all."""
    if not DATA.is_dir():
        pytest.skip(f"no real images and networks at {DATA}; set EDGEDI_DATA to where they are")
    return data_folder()
