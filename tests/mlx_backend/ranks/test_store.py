"""Blocks on several ranks have the size that they have where they are largest. No MLX."""

from __future__ import annotations

from typing import Any

import pytest

from mlx_backend.api.errors import EngineDead
from mlx_backend.core.step import Span
from mlx_backend.prefix_cache.store_mock import MockStore
from mlx_backend.ranks.store import SharedStore

TOKENS = tuple(range(100))


def store(calls: list[Any], *others: int) -> SharedStore:
    own = MockStore(16, lambda source: TOKENS)
    shares = [{"token": each, "state": 0} for each in others]
    return SharedStore(own, shares, lambda name, **given: calls.append((name, given)))


def test_a_block_has_the_size_that_it_has_on_the_fullest_rank() -> None:
    calls: list[Any] = []
    shared = store(calls, 12, 40)
    (ref,) = shared.take(1, [Span(10, 20)])
    assert ref.nbytes == 400
    assert shared.bytes_per_token == 40
    assert calls == [("take", {"source": 1, "spans": (Span(10, 20),), "ids": (ref.id,)})]


def test_where_this_rank_holds_most_a_block_has_its_own_size() -> None:
    (ref,) = store([], 16, 8).take(1, [Span(0, 3)])
    assert ref.nbytes == 48


def test_blocks_are_let_go_of_on_a_group_that_is_lost() -> None:
    own = MockStore(16, lambda source: TOKENS)

    def lost(name: str, **given: Any) -> None:
        if name == "free":
            raise EngineDead("rank 1 is lost")

    shared = SharedStore(own, [{"token": 16, "state": 0}], lost)
    (ref,) = shared.take(1, [Span(0, 3)])
    shared.free(ref.id)
    with pytest.raises(KeyError):
        own.free(ref.id)
