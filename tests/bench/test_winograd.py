"""The table of Winograd's convolution is made, and its errors are of the size that the documents tell of."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from bench import winograd
from edgedi.runtime.kernels import fused

pytestmark = pytest.mark.skipif(not fused.available(), reason="this torch has no fused oneDNN operators")


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_a_layer_is_measured_whole_and_by_a_quarter(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(winograd, "LAYERS", ((64, 32, 18),))
    assert winograd.main(["--chunks", "0.1,1"]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["layer", "direct", "ms", "0.1", "MB", "1", "MB", "error", "here", "usual", "points"]
    assert [row.split()[:6] for row in rows] == [
        ["64", "->", "32", "18", "x", "18"],
        ["64", "->", "32", "5", "x", "18"],
    ]
    for row in rows:
        direct, here, usual = map(float, row.split()[-3:])
        assert max(direct, here) < usual < 2e-5


def test_a_chunk_that_is_no_number_is_refused(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="2"):
        winograd.main(["--chunks", "1,large"])
    assert "'1,large' is no list of megabytes such as 1,4,16" in capsys.readouterr().err
