"""How long a worker looks for a halo before it sleeps."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgedi.runtime.worker.patience import LEAST_S, MOST_S, RETRY_EVERY, Patience


def test_it_begins_with_the_most_and_gives_up_where_looking_is_in_vain() -> None:
    patience, bounds = Patience(), []
    for _ in range(6):
        bounds.append(patience.spin_s)
        patience.did_not_come()
    assert bounds == [MOST_S, MOST_S / 2, MOST_S / 4, MOST_S / 8, 0.0, 0.0]


def test_every_now_and_then_it_tries_the_least() -> None:
    patience = Patience()
    tried = []
    for _ in range(4 * RETRY_EVERY):
        tried.append(patience.spin_s)
        patience.did_not_come()
    assert tried[4 : 4 * RETRY_EVERY].count(LEAST_S) == 3
    assert set(tried[4:]) == {0.0, LEAST_S}


def test_it_comes_back_quickly_where_looking_pays() -> None:
    patience = Patience()
    for _ in range(100):
        patience.did_not_come()
    for _ in range(4):
        patience.came()
    assert patience.spin_s == MOST_S


@given(st.lists(st.booleans(), max_size=300))
def test_the_bound_is_never_more_than_the_most(waits: list[bool]) -> None:
    patience = Patience()
    for came in waits:
        (patience.came if came else patience.did_not_come)()
        assert 0.0 <= patience.spin_s <= MOST_S


@given(st.lists(st.booleans(), max_size=100))
def test_time_spent_in_vain_is_bounded(before: list[bool]) -> None:
    """Whatever came before: of the next waits in vain, all together cost little more than two of the longest."""
    patience = Patience()
    for came in before:
        (patience.came if came else patience.did_not_come)()
    spent = 0.0
    for _ in range(RETRY_EVERY):
        spent += patience.spin_s
        patience.did_not_come()
    assert spent <= 2 * MOST_S + LEAST_S
