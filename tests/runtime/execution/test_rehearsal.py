"""What an emulated device is charged for a program: told by clocks that the test moves."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch

from edgedi.partition.capture.capture import capture_model
from edgedi.partition.cost.probe import probe_programs
from edgedi.partition.plan.lowering import lower
from edgedi.partition.plan.program import Join, Run, Send
from edgedi.runtime.emulation.calm import FIRST_LOOKS, Calm
from edgedi.runtime.execution import rehearsal
from edgedi.runtime.execution.changed import Changed, Kernel
from edgedi.runtime.execution.executor import LoadedProgram, ProgramRun
from edgedi.runtime.execution.loading import expected_pieces
from edgedi.runtime.execution.rehearsal import REPEATS, Price, PricedProgram, computes, price_of, rehearse, steady
from edgedi.runtime.execution.tensors import noise_of
from tests.plans import axis_plan
from tests.runtime.networks import image, small


class Clock:
    """Stands still but for what is computed."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s

    def slowed(self, loaded: LoadedProgram, seconds: Callable[[int], float]) -> LoadedProgram:
        """The same program, whose instructions take ``seconds(number)`` by this clock."""

        def change(number: int, kernel: Kernel) -> Kernel:
            def run(*inputs: torch.Tensor) -> object:
                self.now_s += seconds(number)
                return kernel(*inputs)

            return run

        return Changed(loaded, change)


@pytest.fixture(scope="module")
def loaded() -> LoadedProgram:
    """The first of two workers that share the rows of a network: it receives and sends halos, joins and runs."""
    captured = capture_model(small(), (image(),))
    programs = lower(axis_plan(captured.graph, 2), captured.graph)
    weights = captured.weights
    return LoadedProgram(
        programs.programs[0], captured.graph,
        lambda name, cut: weights[name] if cut is None else weights[name][cut.start : cut.stop],
    )  # fmt: skip


def numbers(loaded: LoadedProgram) -> list[int]:
    """Of instructions that compute."""
    return [n for n, i in enumerate(loaded.program.instructions) if isinstance(i, (Run, Join))]


def test_each_instruction_counts_what_it_took(loaded: LoadedProgram) -> None:
    clock = Clock()
    found = rehearse(clock.slowed(loaded, lambda number: 0.001 * (number + 1)), clock)
    assert any(isinstance(i, Join) for i in loaded.program.instructions)
    assert list(found) == numbers(loaded)
    assert found == pytest.approx({number: 0.001 * (number + 1) for number in numbers(loaded)})


def test_what_comes_between_two_instructions_belongs_to_the_second(loaded: LoadedProgram) -> None:
    """Every look at a clock that goes on by itself is a tick later: one look for each instruction."""
    ticks = itertools.count()
    found = rehearse(loaded, lambda: 1e-6 * next(ticks))
    assert list(found.values()) == pytest.approx([1e-6] * len(found))


def rehearsed_as(monkeypatch: pytest.MonkeyPatch, *rehearsals: dict[int, float]) -> None:
    """The next rehearsals find this."""
    found = iter(rehearsals)
    monkeypatch.setattr(rehearsal, "rehearse", lambda loaded: next(found))


def charges_of(program: LoadedProgram, charged: list[float]) -> list[float]:
    """Of one more run, by ``charged``, where they are noted."""
    charged.clear()
    run = ProgramRun(program)
    for (piece, source), found in expected_pieces(program.program, program.graph).items():
        run.deliver(piece, source, noise_of(*found))
    with torch.inference_mode():
        assert run.advance(lambda piece, tensor, target: None)
    return list(charged)


def test_the_shorter_of_two_rehearsals_counts(loaded: LoadedProgram, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first when it is loaded, the last before somebody is told; engines have two as well."""
    one = {number: 1.0 + number for number in numbers(loaded)}
    total_s = sum(one.values())
    quickest, quicker = ({n: factor * s for n, s in one.items()} for factor in (0.1, 0.5))
    rehearsed_as(monkeypatch, one, quickest, quicker, quickest)
    price, charged = Price(), []
    first = PricedProgram(loaded, price, charged.append)
    assert charges_of(first, charged) == pytest.approx(list(one.values()))
    second = PricedProgram(loaded, price, charged.append)
    assert price.total_s == total_s, "another session of the same program has no rehearsal more"
    assert charges_of(second, charged) == pytest.approx(list(one.values()))
    runs = [n for n, i in enumerate(loaded.program.instructions) if isinstance(i, Run)]
    assert len(runs) < len(one)
    assert first.told_s() == pytest.approx(0.5 * sum(one[number] for number in runs))
    assert second.told_s() == pytest.approx(first.told_s())
    third = PricedProgram(loaded, price, charged.append)
    for program in (first, second, third):
        assert sum(charges_of(program, charged)) == pytest.approx(0.5 * total_s)


def test_programs_that_lump_their_work_differently_have_one_price(
    loaded: LoadedProgram, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine computes a chain of layers in its last step, and may compute another chain in another session."""
    each = dict.fromkeys(numbers(loaded), 1.0)
    lumped = dict.fromkeys(each, 0.0) | {max(each): 0.5 * len(each)}
    rehearsed_as(monkeypatch, each, lumped)
    price, charged = Price(), []
    one = PricedProgram(loaded, price, charged.append)
    other = PricedProgram(loaded, price, charged.append)
    assert charges_of(one, charged) == pytest.approx([1.0] * len(each))
    assert charges_of(other, charged) == pytest.approx([2 * seconds for seconds in lumped.values()])


def test_the_same_answer_at_a_price(loaded: LoadedProgram, monkeypatch: pytest.MonkeyPatch) -> None:
    charged: list[float] = []
    prices = {number: float(number) for number in numbers(loaded)}
    rehearsed_as(monkeypatch, prices)
    program = PricedProgram(loaded, Price(), charged.append)
    torch.manual_seed(0)
    pieces = {key: noise_of(*found) for key, found in expected_pieces(loaded.program, loaded.graph).items()}
    answers = []
    for each in (loaded, program):
        sent: list[torch.Tensor] = []
        run = ProgramRun(each)
        for (piece, source), tensor in pieces.items():
            run.deliver(piece, source, tensor.clone())
        with torch.inference_mode():
            assert run.advance(lambda piece, tensor, target, sent=sent: sent.append(tensor.clone()))
        answers.append(sent)
    assert charged == pytest.approx(list(prices.values()))
    assert len(answers[0]) == sum(isinstance(i, Send) for i in loaded.program.instructions) > 0
    assert all(torch.equal(a, b) for a, b in zip(*answers, strict=True))


CALM, NOT = 1.0, 1.6


def moments(*loops: float) -> Calm:
    """What the loop takes, one look after another; calm for ever afterwards."""
    told = itertools.chain([CALM] * FIRST_LOOKS, loops, itertools.repeat(CALM))
    return Calm(lambda: next(told))


def test_the_median_run_of_those_at_calm_moments_counts() -> None:
    """The first run warms up; parts are those of one run, where medians of each would be less than any run took."""
    runs = iter([{0: 9.0, 1: 9.0}, *[{0: 1.0, 1: 3.0}] * 2, {0: 3.5, 1: 1.0}, {0: 50.0, 1: 1.0}, {0: 0.1, 1: 0.1}])
    assert steady(lambda: next(runs), moments()) == {0: 1.0, 1: 3.0}
    assert next(runs, None) is None
    assert REPEATS == 5


def test_runs_at_other_moments_do_not_count() -> None:
    runs = iter([{0: 9.0}, *[{0: 1.0}] * 3, {0: 0.1}, *[{0: 2.0}] * 2])
    assert steady(lambda: next(runs), moments(*[CALM, CALM] * 3, CALM, NOT, NOT)) == {0: 1.0}


def test_what_computes_nothing_has_no_price(loaded: LoadedProgram) -> None:
    assert computes(loaded)
    passes_on = probe_programs(4_096, 2).programs[1]
    graph = probe_programs(4_096, 2).graph
    assert not computes(LoadedProgram(passes_on, graph, lambda name, cut: torch.zeros(())))


def test_the_same_program_has_one_price_as_long_as_anybody_has_it() -> None:
    layers = ({"name": "conv", "shape": (1, 3)},)
    price = price_of("run y", layers, "torch")
    assert price_of("run y", ({"name": "conv", "shape": (1, 3)},), "torch") is price
    price.learn({0: 2.0})
    assert not price_of("run z", layers, "torch").is_known
    assert not price_of("run y", ({"name": "conv", "shape": (1, 4)},), "torch").is_known, "another model's"
    assert not price_of("run y", layers, "torch; openvino for 1 of 1 chains").is_known
    del price
    assert not price_of("run y", layers, "torch").is_known
