"""Links are measured once, when they are asked for, unless they were given."""

from __future__ import annotations

import pytest

from edgedi import distribute
from edgedi.partition.cost.profile import ClusterProfile, LinkProfile
from edgedi.partition.plan.plan import HOME
from edgedi.runtime.coordinator.known_links import SMALL_DEVICE_LINK, KnownLinks
from edgedi.runtime.coordinator.link_probe import PROBE_ROOM_BYTES
from edgedi.runtime.wire.messages import Welcome
from edgedi.runtime.worker.local_workers import LocalWorkers
from tests.runtime.networks import image, small


def link(milliseconds: float) -> LinkProfile:
    return LinkProfile(latency_s=1e-3 * milliseconds, bytes_per_s=1e9 / milliseconds)


class Probe:
    """Says of a link what its ends' numbers say, and notes who asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []

    def between(self, one: int, other: int) -> LinkProfile:
        self.asked.append((one, other))
        return link(10 * (one + other))

    def to_home(self, worker: int) -> LinkProfile:
        self.asked.append((HOME, worker))
        return link(1 + worker)


def welcome(name: str, memory_limit_bytes: int | None = None) -> Welcome:
    return Welcome(
        wire_version=1, software_version="1", name=name, device="cpu", threads=1,
        memory_limit_bytes=memory_limit_bytes, machine="m", halo_address=None, fingerprint="f",
    )  # fmt: skip


FOUR = [welcome(name) for name in "abcd"]


def test_neighbours_are_measured_once_and_others_are_the_worst_on_the_way() -> None:
    probe, said = Probe(), []
    known = KnownLinks(None, probe, FOUR, said.append)
    found = known.among([0, 1, 2])
    assert probe.asked == [(HOME, 0), (HOME, 1), (HOME, 2), (0, 1), (1, 2)]
    assert said[0] == "measuring the link to a"
    assert said[-1] == "measuring the link between b and c"
    assert found[HOME, 2] == found[2, HOME] == link(3)
    assert found[1, 2] == found[2, 1] == link(30)
    assert found[0, 2] == found[2, 0] == link(30)
    assert known.among([0, 1, 2]) == found
    assert len(probe.asked) == 5


def test_who_is_left_is_numbered_anew_and_their_new_neighbours_are_measured() -> None:
    probe = Probe()
    known = KnownLinks(None, probe, FOUR, lambda text: None)
    known.among([0, 1, 2, 3])
    found = known.among([1, 3])
    assert probe.asked[-1] == (1, 3)
    assert found == {
        (HOME, 0): link(2), (0, HOME): link(2), (HOME, 1): link(4), (1, HOME): link(4), (0, 1): link(40),
        (1, 0): link(40),
    }  # fmt: skip


def test_what_was_given_is_not_measured_and_each_direction_is_its_own() -> None:
    probe = Probe()
    given = {(HOME, 0): link(5), (0, HOME): link(6), (1, 0): link(7)}
    found = KnownLinks(given, probe, FOUR, lambda text: None).among([0, 1])
    assert probe.asked == [(HOME, 1), (0, 1)]
    assert (found[HOME, 0], found[0, HOME]) == (link(5), link(6))
    assert (found[0, 1], found[1, 0]) == (link(10), link(7))


def test_the_way_back_is_the_worst_of_the_links_back() -> None:
    given = {(0, 1): link(1), (1, 0): link(50), (1, 2): link(2), (2, 1): link(3)}
    found = KnownLinks(given, Probe(), FOUR, lambda text: None).among([0, 1, 2])
    assert (found[0, 2], found[2, 0]) == (link(2), link(50))


def test_what_was_given_of_workers_that_are_no_neighbours_counts() -> None:
    found = KnownLinks({(0, 2): link(99)}, Probe(), FOUR, lambda text: None).among([0, 1, 2])
    assert (found[0, 2], found[2, 0]) == (link(99), link(30))


def test_a_worker_without_room_is_not_measured() -> None:
    probe = Probe()
    workers = [welcome("large", PROBE_ROOM_BYTES), welcome("small", PROBE_ROOM_BYTES - 1)]
    found = KnownLinks(None, probe, workers, lambda text: None).among([0, 1])
    assert probe.asked == [(HOME, 0)]
    assert found[HOME, 1] == found[0, 1] == SMALL_DEVICE_LINK


def test_links_are_numbered_as_workers_were_given_whoever_the_plan_uses() -> None:
    model, x, workers = small(), image(), LocalWorkers(2)
    try:
        with distribute(model, x, workers.addresses, objective="throughput") as session:
            assert set(session.links) == {(HOME, 0), (0, HOME), (HOME, 1), (1, HOME), (0, 1), (1, 0)}
        profile = ClusterProfile.uniform(2).with_links({(0, 1): link(3)})
        with distribute(model, x, workers.addresses, profile=profile) as session:
            assert session.links == {(0, 1): link(3)}
    finally:
        workers.stop()


def test_a_session_takes_the_links_that_another_has_measured() -> None:
    model, x, workers, said = small(), image(), LocalWorkers(2), []
    try:
        with distribute(model, x, workers.addresses, progress=said.append) as session:
            known = dict(session.links)
            assert session.profile.links == known
        assert set(known) == {(HOME, 0), (0, HOME), (HOME, 1), (1, HOME), (0, 1), (1, 0)}
        assert sum(line.startswith("measuring the link") for line in said) == 3
        said.clear()
        with distribute(model, x, workers.addresses, links=known, progress=said.append) as session:
            assert session.links == session.profile.links == known
        assert not [line for line in said if "link" in line]
    finally:
        workers.stop()


def test_what_is_no_link_is_refused() -> None:
    with pytest.raises(TypeError, match=r"from 0 to -1 is 0\.1: give a LinkProfile"):
        distribute(small(), image(), ["127.0.0.1:5555"], links={(0, HOME): 0.1})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"links": {(0, 1): link(1)}}, "no link from 0 to 1 among 1 workers"),
        ({"links": {(0, 0): link(1)}}, "no link from 0 to 0"),
        ({"links": {(HOME, 0): link(1)}, "profile": ClusterProfile.uniform(1)}, "give one of the two"),
    ],
)
def test_links_that_are_not_there_are_refused(options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        distribute(small(), image(), ["127.0.0.1:5555"], **options)
