"""edgedi-bench where some plans do not fit into the workers' memory: the others are compared, and these are named."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgedi.cli.bench import main
from edgedi.runtime.worker.local_workers import LocalWorkers
from tests.bench.html.reading import read

HERE = Path(__file__).parent
HEAVY = ("--model", "tiny_networks:heavy", "--input", "1x3x8x8", "--rounds", "2")
NO_ROOM = "has not the memory for the plan of {}: it needs "


@pytest.fixture(autouse=True)
def networks_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """``tiny_networks`` is found as a user's own module is: in the current folder."""
    monkeypatch.chdir(HERE)


@pytest.fixture(scope="module")
def addresses() -> Iterator[str]:
    """Two workers with memory for half of the weights of ``heavy`` and its maps, not for all weights."""
    started = LocalWorkers(2, threads=1, options=("--memory-limit", "1600k"))
    yield ",".join(started.addresses)
    started.stop()


def test_planners_without_room_are_named_and_ratios_are_over_the_engine(
    addresses: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, page = tmp_path / "r.json", tmp_path / "r.html"
    options = ("--workers", addresses, "--planners", "oodp,equal", "--against", "eager")
    assert main([*HEAVY, *options, "--json", str(path), "--html", str(page)]) == 0
    printed, found = capsys.readouterr(), json.loads(path.read_text())
    assert [split["name"] for split in found["planners"]] == ["oodp"]
    assert sorted(found["not_compared"]) == ["equal", "single"]
    assert [NO_ROOM.format(name) in why for name, why in found["not_compared"].items()] == [True, True]
    assert ["\n" in why for why in found["not_compared"].values()] == [False, False]
    oodp, eager = found["planners"][0], found["engines"][0]
    assert oodp["times_as_fast_as_one_worker"] is eager["times_as_fast_as_one_worker"] is None
    assert oodp["times_as_fast_as_best_engine"]["median"] > 0
    assert oodp["efficiency"] == pytest.approx(oodp["times_as_fast_as_best_engine"]["median"] / 2)
    assert oodp["difference"] <= 2e-5
    assert ("times eager" in printed.out, "times 1 worker  " in printed.out.splitlines()[2]) == (True, False)
    assert "Not compared: single. worker" in printed.out
    heads = [head.text for head in read(page.read_text(encoding="utf-8")).all("table")[0].all("th")]
    assert heads[:5] == ["contender", "median ms", "middle half", "times eager", "efficiency"]


def test_without_any_plan_that_fits_the_reasons_are_the_error(
    addresses: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*HEAVY, "--workers", addresses, "--planners", "equal", "--against", "none"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("edgedi-bench: no planner has a plan to compare; single: worker ")
    assert f"; equal: worker 0 (local-0) {NO_ROOM.format('equal')}" in said


def test_a_stream_is_measured_without_one_worker_too(
    addresses: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "s.json"
    options = ("--objective", "throughput", "--workers", addresses, "--against", "none", "--repeat", "3")
    assert main([*HEAVY, *options, "--json", str(path)]) == 0
    found = json.loads(path.read_text())
    assert [row["name"] for row in found["rows"]] == ["oodp, in flight", "throughput"]
    assert list(found["not_compared"]) == ["one worker"]
    assert "Not compared: one worker. worker" in capsys.readouterr().out
