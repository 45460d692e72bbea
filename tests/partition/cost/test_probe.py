"""Programs that measure links: proven like any program, and the arithmetic on what they took."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgedi.partition.cost.probe import COLD, COLD_AT_MOST_S, link_of_trips, links_along, probe_programs
from edgedi.partition.cost.profile import LinkProfile
from edgedi.partition.plan.plan import HOME
from edgedi.partition.plan.program import Recv, Send
from edgedi.partition.plan.simulate import simulate
from edgedi.runtime.execution.executor import LoadedProgram, ProgramRun


@pytest.mark.parametrize("home", [False, True])
@pytest.mark.parametrize("num_trips", [1, 2, 9])
@pytest.mark.parametrize("row_bytes", [64, 4096, 262_144])
def test_the_programs_finish_and_send_what_they_say(num_trips: int, row_bytes: int, home: bool) -> None:
    one, other = (HOME, 0) if home else (0, 1)
    seen = simulate(probe_programs(row_bytes, num_trips, home=home))
    around = simulate(probe_programs(row_bytes, 1, home=home)) if home else None
    assert seen.messages_per_link[one, other] - home == num_trips  # the coordinator gives the tensor first
    assert seen.messages_per_link[other, one] - home == num_trips  # and gets an answer
    assert seen.bytes_per_link[other, one] - home * row_bytes == num_trips * row_bytes
    assert around is None or around.messages_per_link[other, one] == 2


@pytest.mark.parametrize("home", [False, True])
def test_rows_go_there_and_back_one_at_a_time(home: bool) -> None:
    programs = probe_programs(4096, 2, home=home).programs
    there, back = (programs[HOME], programs[0]) if home else (programs[0], programs[1])
    assert [type(i) for i in there.instructions if "x@" in str(i)] == [Send, Recv, Send, Recv]
    assert [type(i) for i in back.instructions if "x@" in str(i)] == [Recv, Send, Recv, Send]


@pytest.mark.parametrize("home", [False, True])
def test_they_run(home: bool) -> None:
    programs = probe_programs(4096, 3, home=home)
    inputs = {name: torch.rand(spec.shape) for name, spec in programs.graph.inputs.items()}

    def load(participant: int) -> ProgramRun:
        loaded = LoadedProgram(programs.programs[participant], programs.graph, lambda *_: pytest.fail("no weights"))
        return ProgramRun(loaded, inputs if participant == HOME else None)

    runs = {participant: load(participant) for participant in programs.programs}
    for _ in range(12):
        for source, run in runs.items():
            run.advance(lambda piece, tensor, target, source=source: runs[target].deliver(piece, source, tensor))
    assert torch.equal(runs[HOME].output("y"), inputs["x"][:, :, :1])


@pytest.mark.parametrize("row_bytes", [0, -64, 100])
def test_a_row_of_no_such_size(row_bytes: int) -> None:
    with pytest.raises(ValueError, match=f"row_bytes is {row_bytes}; give a positive multiple of 64"):
        probe_programs(row_bytes, 1)


@given(fixed_s=st.floats(2e-5, 1e-2), bytes_per_s=st.floats(1e5, 1e10))
def test_a_link_gives_back_what_its_trips_took(fixed_s: float, bytes_per_s: float) -> None:
    trips = {size: fixed_s + size / bytes_per_s for size in (4096, 262_144)}
    link = link_of_trips(trips, cold=1.0)
    for size, seconds in trips.items():
        assert link.latency_s + 2 * link.message_cpu_s + size / link.bytes_per_s == pytest.approx(seconds, rel=1e-6)


@pytest.mark.parametrize(
    ("warm_s", "cold_s"),
    [(2e-5, COLD * 2e-5), (5e-5, COLD * 5e-5), (1e-4, 1e-4 + COLD_AT_MOST_S), (3e-2, 3e-2 + COLD_AT_MOST_S)],
)
def test_in_a_network_a_message_takes_longer_by_what_caches_cost_and_no_more(warm_s: float, cold_s: float) -> None:
    trips = {size: warm_s + size / 1e9 for size in (4096, 262_144)}
    link = link_of_trips(trips)
    assert link.latency_s + 2 * link.message_cpu_s == pytest.approx(cold_s, rel=1e-6)
    assert link.bytes_per_s == pytest.approx(1e9, rel=1e-6)


@given(st.floats(0, 1e-2), st.floats(0, 1e-2))
def test_noise_never_makes_a_link_that_costs_nothing(small_s: float, large_s: float) -> None:
    link = link_of_trips({4096: small_s, 262_144: large_s})
    warm = link_of_trips({4096: small_s, 262_144: large_s}, cold=1.0)
    assert warm.latency_s < link.latency_s <= COLD * warm.latency_s * (1 + 1e-9)
    assert warm.message_cpu_s < link.message_cpu_s <= COLD * warm.message_cpu_s * (1 + 1e-9)
    assert warm.bytes_per_s == link.bytes_per_s
    assert link.latency_s > 0
    assert link.message_cpu_s > 0
    assert 0 < link.bytes_per_s < math.inf


def test_between_those_who_are_no_neighbours_the_worst_on_the_way_counts() -> None:
    first = LinkProfile(latency_s=1.0, bytes_per_s=10.0, message_cpu_s=0.1)
    second = LinkProfile(latency_s=0.5, bytes_per_s=5.0, message_cpu_s=0.2)
    links = links_along([first, second])
    assert links[0, 1] == links[1, 0] == first
    assert links[1, 2] == links[2, 1] == second
    assert links[0, 2] == links[2, 0] == LinkProfile(latency_s=1.0, bytes_per_s=5.0, message_cpu_s=0.2)
    assert links_along([]) == {}
