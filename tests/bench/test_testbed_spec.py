"""Specs of testbeds: the ready ones, one's own, and everything that can be wrong with one."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgedi.bench.testbed.spec import Device, Link, Spec, parse_rate
from edgedi.bench.testbed.specs import find_spec, parse_spec, ready_specs

GOOD = """
description = "two boards"
[link]
rate_bits_per_s = 100_000_000
latency_s = 0.001
[[devices]]
name = "a"
slowdown = 10
memory_bytes = 1000
[[devices]]
name = "b"
slowdown = 2.5
link = { rate_bits_per_s = 800_000 }
"""


def test_a_spec_is_read_as_it_is_written():
    a = Device(name="a", slowdown=10, memory_bytes=1000, link=Link(rate_bits_per_s=1e8, latency_s=0.001))
    b = Device(name="b", slowdown=2.5, link=Link(rate_bits_per_s=800_000))
    spec = parse_spec(GOOD, name="mine")
    assert spec == Spec(name="mine", description="two boards", devices=(a, b))
    assert spec.least_slowdown == 2.5
    assert b.link.bytes_per_s == 100_000
    assert str(spec) == "mine: 1 x 10 times as slow at 100 Mbit/s, 1 ms, 1 x 2.5 times as slow at 800 kbit/s, 0 ms"


@pytest.mark.parametrize(
    ("name", "slowdowns", "rates"),
    [
        ("pi4x2", [10] * 2, {1e9}),
        ("pi4x4", [10] * 4, {1e9}),
        ("pi4x8", [10] * 8, {1e9}),
        ("pi3x2_pi4x2", [10, 10, 15, 15], {1e9}),
        ("mixed_links", [10] * 3, {1e8, 5e7, 2e7}),
    ],
)
def test_ready_specs_are_what_they_are_called(name: str, slowdowns: list[float], rates: set[float]):
    spec = find_spec(name)
    assert [device.slowdown for device in spec.devices] == slowdowns
    assert {device.link.rate_bits_per_s for device in spec.devices} == rates
    assert all(device.memory_bytes and device.link.latency_s > 0 for device in spec.devices)
    assert spec.description


def test_time_runs_slowly_where_many_devices_share_this_machine():
    spec = find_spec("pi4x8@100M")
    assert spec.dilation == 4
    assert {link.rate_bits_per_s for link in spec.links} == {25e6}
    assert str(spec) == "pi4x8@100M: 8 x 10 times as slow at 100 Mbit/s, 0.1 ms, time 4 times as slowly"
    assert find_spec("pi4x4").dilation == 1
    assert str(find_spec("pi4x4")) == "pi4x4: 4 x 10 times as slow at 1 Gbit/s, 0.1 ms"


def test_these_are_all_and_each_comes_at_other_rates():
    assert ready_specs() == ("mixed_links", "pi3x2_pi4x2", "pi4x2", "pi4x4", "pi4x8")
    for rate, bits_per_s in (("1G", 1e9), ("100M", 1e8), ("50M", 5e7)):
        spec = find_spec(f"pi4x4@{rate}")
        assert {device.link.rate_bits_per_s for device in spec.devices} == {bits_per_s}
        assert spec.name == f"pi4x4@{rate}"


def test_a_file_of_ones_own_is_a_spec_too(tmp_path: Path):
    path = tmp_path / "own.toml"
    path.write_text(GOOD)
    assert find_spec(str(path)).devices == parse_spec(GOOD, name="x").devices
    assert find_spec(f"{path}@100k").devices[1].link.rate_bits_per_s == 1e5


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("slowdown = 10", "slow = 10", ["device 1", "unknown key 'slow'", "; did you mean slowdown?", "memory_bytes"]),
        ("[link]", "[links]", ["the spec has an unknown key 'links'", "; did you mean link?"]),
        ("latency_s = 0.001", "latency_ms = 1", ["[link] has an unknown key 'latency_ms'", "latency_s"]),
        ("rate_bits_per_s = 100_000_000", "rate_bits_per_s = 0", ["[link]: rate_bits_per_s is 0", "above 0"]),
        ("rate_bits_per_s = 800_000 ", "rate_bits_per_s = -8 ", ["device 2, link: rate_bits_per_s is -8", "above 0"]),
        (
            "rate_bits_per_s = 800_000 ",
            "rate_bits_per_s = 1 ",
            ["device 2: rate_bits_per_s is 1: give at least 100000"],
        ),
        ("rate_bits_per_s = 800_000 ", "rate_bits_per_s = inf ", ["device 2, link: rate_bits_per_s is inf"]),
        ("rate_bits_per_s = 800_000 ", "rate_bits_per_s = true ", ["rate_bits_per_s is True: give a number"]),
        ("rate_bits_per_s = 800_000 ", "latency_s = 1 ", ["device 2, link lacks rate_bits_per_s"]),
        ("latency_s = 0.001", "latency_s = -1", ["device 1: latency_s is -1: accepted are 0 to 10 seconds"]),
        ("slowdown = 10", "slowdown = 0.5", ["device 1: slowdown is 0.5: accepted are 1"]),
        ("slowdown = 10", 'slowdown = "ten"', ["device 1: slowdown is 'ten': give a number"]),
        ("slowdown = 10", "", ["device 1 lacks slowdown"]),
        ("memory_bytes = 1000", "memory_bytes = 0", ["device 1: memory_bytes is 0: give a whole number"]),
        ("memory_bytes = 1000", "memory_bytes = 1.5", ["device 1: memory_bytes is 1.5"]),
        ('name = "b"', 'name = "a"', ["two devices have the name 'a'"]),
        ('name = "b"', 'name = "a b/c"', ["device 2: name is 'a b/c'"]),
        ('name = "b"', "name = 3", ["device 2: name is 3"]),
        ("link = {", "link = 5 # {", ["device 2, link is 5: give a table with rate_bits_per_s"]),
        ("[link]", "dilation = 0.5\n[link]", ["dilation is 0.5: accepted are 1 (time as it is) to 100"]),
        (
            "[link]",
            "dilation = 2\n[link]",
            ["dilation is 2: it leaves a link 400 kbit/s", "keep 1.5 Mbit/s"],
        ),
        ("[link]", "dilation = 'slow'\n[link]", ["dilation is 'slow': give a number"]),
        ("[link]", "[link", ["this is no TOML"]),
        ("[[devices]]", "[devices]", ["this is no TOML"]),
    ],
)
def test_what_is_wrong_with_a_spec_is_said_with_its_place(old: str, new: str, words: list[str]):
    assert old in GOOD
    with pytest.raises(ValueError) as error:
        parse_spec(GOOD.replace(old, new), name="mine")
    assert str(error.value).startswith("testbed mine: ")
    assert [word for word in words if word not in str(error.value)] == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["the spec lacks devices"]),
        ("devices = []", ["there are 0 [[devices]]", "1 to 64"]),
        ("devices = 3", ["devices is no list"]),
        ("devices = [3]", ["device 1 is 3: give a table"]),
        ('[[devices]]\nname = "a"\nslowdown = 1', ["device 1 has no link", "[link] for all"]),
    ],
)
def test_a_spec_without_devices_or_links_is_refused(text: str, words: list[str]):
    with pytest.raises(ValueError) as error:
        parse_spec(text, name="mine")
    assert [word for word in words if word not in str(error.value)] == []


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("pi4x3", ["no testbed 'pi4x3'", "did you mean pi4x", "mixed_links", "FILE.toml"]),
        ("", ["no testbed ''", "pi4x4"]),
        ("../pi4x2", ["no testbed '../pi4x2'"]),
        ("no/such.toml", ["no/such.toml: No such file"]),
        ("pi4x2@", ["''", "1G, 100M or 50M"]),
        ("pi4x2@fast", ["'fast' is not a rate"]),
        ("pi4x2@0", ["testbed pi4x2@0: rate_bits_per_s is 0", "above 0"]),
        ("pi4x2@0.0", ["testbed pi4x2@0.0: rate_bits_per_s is 0", "above 0"]),
        ("pi4x2@99k", ["testbed pi4x2@99k: rate_bits_per_s is 99000: give at least 100000 (100 kbit/s)", "greeting"]),
        ("pi4x2@0M", ["testbed pi4x2@0M: rate_bits_per_s is 0", "above 0"]),
    ],
)
def test_a_spec_that_is_not_there_is_answered_with_those_that_are(given: str, words: list[str]):
    with pytest.raises(ValueError) as error:
        find_spec(given)
    assert [word for word in words if word not in str(error.value)] == []


def test_a_file_that_is_no_text_is_named(tmp_path: Path):
    path = tmp_path / "x.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"x\.toml: this is no text"):
        find_spec(str(path))


@pytest.mark.parametrize(("text", "bits_per_s"), [("1G", 1e9), ("100M", 1e8), ("2.5k", 2500)])
def test_rates_have_units(text: str, bits_per_s: float):
    assert parse_rate(text) == bits_per_s
