"""What ranks hold is shown as it was on all of them after the same call, however late some of them answer."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_backend.ranks.holdings import EVERY_S, Held, Holdings, read_held


@given(st.integers(1, 4), st.data())
def test_what_is_shown_was_counted_after_one_call(num_ranks: int, data: st.DataObject) -> None:
    holdings = Holdings()
    holdings.size(num_ranks)
    begun = 0
    answered = [0] * num_ranks
    for rank in data.draw(st.lists(st.integers(0, num_ranks - 1), max_size=40)):
        if rank == 0:
            begun = answered[0] = holdings.begin(Held(kv=begun + 1), 0.0)
        elif answered[rank] < begun:
            answered[rank] += 1
            holdings.answer(rank, answered[rank], Held(kv=answered[rank]))
        assert holdings.newest() == (Held(kv=min(answered)),) * num_ranks
    most_open = begun - min(answered)
    assert all(len(counts) <= most_open + 1 for counts in holdings._counts), "old counts are forgotten"


def test_it_is_counted_now_and_then_and_when_the_last_cache_is_gone() -> None:
    holdings = Holdings()
    assert holdings.is_due(0, 100.0), "the first"
    holdings.begin(Held(), 100.0)
    assert not holdings.is_due(0, 100.1), "nothing was computed"
    holdings.change()
    assert not holdings.is_due(7, 100.2) and holdings.is_due(0, 100.2)
    assert holdings.is_due(7, 100.0 + EVERY_S)
    holdings.begin(Held(), 100.3)
    assert not holdings.is_due(0, 100.4)


@pytest.mark.parametrize("fields", [{}, {"kv": 1, "active": 2}, {"kv": "1", "active": 2, "peak": 3}, None])
def test_a_count_that_is_none_is_refused(fields: Any) -> None:
    with pytest.raises((KeyError, TypeError)):
        read_held(fields)
    assert read_held(Held(1, 2, 3)._asdict()) == Held(1, 2, 3)
