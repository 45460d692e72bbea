"""The path of widths against every choice there is."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from edgedi.transforms.prune.allocate import LayerCost, Steps, path_of


def test_a_chain_by_hand():
    """The second group's units cost half as much error per multiplication; its savings fall once the first's go."""
    layers = [
        LayerCost(macs=100, inputs={}, outputs={"a": 0.5}),
        LayerCost(macs=100, inputs={"a": 0.5}, outputs={"b": 0.5}),
        LayerCost(macs=10, inputs={}, outputs={}),
    ]
    groups = {"a": Steps(counts=(0, 1), errors=(0.0, 1.0)), "b": Steps(counts=(0, 1), errors=(0.0, 0.25))}
    path = path_of(groups, layers)
    assert [dict(width.removed) for width in path] == [{"a": 0, "b": 0}, {"a": 0, "b": 1}, {"a": 1, "b": 1}]
    assert [width.macs for width in path] == [210, 160, 85]


def test_a_leap_over_a_bad_bargain():
    layers = [LayerCost(macs=100, inputs={}, outputs={"a": 0.1})]
    (_, first, second) = path_of({"a": Steps(counts=(0, 1, 2, 3), errors=(0.0, 1.0, 1.0, 3.0))}, layers)
    assert (first.removed["a"], second.removed["a"]) == (2, 3)


curves = st.lists(st.integers(1, 20), min_size=1, max_size=3).map(sorted)
"""What each further unit costs; units of a group save the same, so that greedy is right."""


@given(st.lists(st.tuples(curves, st.integers(1, 9)), min_size=1, max_size=3))
def test_every_point_is_the_best_for_what_it_saves(groups: list[tuple[list[int], int]]):
    names = [f"group {i}" for i in range(len(groups))]
    steps, layers, price = {}, [], {}
    for name, (costs, macs) in zip(names, groups, strict=True):
        errors = [0.0, *(float(total) for total in itertools.accumulate(costs))]
        steps[name] = Steps(counts=tuple(range(len(errors))), errors=errors)
        layers.append(LayerCost(macs=10 * macs, inputs={}, outputs={name: 0.1}))
        price[name] = macs
    path = path_of(steps, layers)
    choices = list(itertools.product(*(range(len(steps[name].counts)) for name in names)))
    assert [w.macs for w in path] == sorted((w.macs for w in path), reverse=True)
    for before, after in itertools.pairwise(path):
        assert all(before.removed[name] <= after.removed[name] for name in names)
    assert tuple(path[-1].removed.values()) == tuple(len(steps[name].counts) - 1 for name in names)
    for width in path:
        saved = sum(width.removed[name] * price[name] for name in names)
        error = sum(steps[name].errors[width.removed[name]] for name in names)
        assert abs(sum(layer.macs for layer in layers) - width.macs - saved) < 1e-6
        for choice in choices:
            if sum(count * price[name] for name, count in zip(names, choice, strict=True)) >= saved:
                assert sum(steps[n].errors[c] for n, c in zip(names, choice, strict=True)) >= error - 1e-9
