"""Groups of rows by length: what they hold, against every other division; and that what is planned is enough."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_backend.kv_cache import grouping
from mlx_backend.kv_cache.allocation import allocated
from mlx_backend.kv_cache.grouping import MAX_GROUPS, divide, most_bytes, regroup, size_of

MB = 1 << 20
LLAMA_8B_TOKEN = 131_072


def llama_8b(num_tokens: int) -> int:
    return allocated(num_tokens) * LLAMA_8B_TOKEN


def windowed(num_tokens: int) -> int:
    return min(allocated(num_tokens), 512) * LLAMA_8B_TOKEN


lengths = st.lists(st.integers(1, 40_000), min_size=1, max_size=9)
sizes = st.sampled_from([llama_8b, windowed, lambda n: n * MB, lambda n: n])


def groups_of(lengths: Sequence[int], numbers: Sequence[int]) -> list[list[int]]:
    pairs = list(zip(lengths, numbers, strict=True))
    return [[length for length, number in pairs if number == each] for each in sorted(set(numbers))]


def least(lengths: Sequence[int], row_bytes: grouping.RowBytes, max_groups: int) -> int:
    """The fewest bytes of all divisions, found by trying each."""

    def divisions(left: list[int], groups: list[list[int]]) -> int:
        if not left:
            return size_of(groups, row_bytes)
        options = [divisions(left[1:], [*groups[:i], [*g, left[0]], *groups[i + 1 :]]) for i, g in enumerate(groups)]
        if len(groups) < max_groups:
            options.append(divisions(left[1:], [*groups, [left[0]]]))
        return min(options)

    return divisions(list(lengths), [])


@given(st.lists(st.integers(1, 40_000), min_size=1, max_size=6), sizes, st.integers(1, 3))
def test_a_division_holds_little_more_than_the_least(
    found: list[int], row_bytes: grouping.RowBytes, max_groups: int
) -> None:
    numbers = divide(found, row_bytes, max_groups)
    assert len(set(numbers)) <= max_groups
    best = least(found, row_bytes, max_groups)
    assert size_of(groups_of(found, numbers), row_bytes) <= best + max(128 * MB, best // 16)


@given(lengths, sizes)
def test_no_group_is_opened_for_little(found: list[int], row_bytes: grouping.RowBytes) -> None:
    together = len(found) * row_bytes(max(found))
    if together - sum(map(row_bytes, found)) <= 128 * MB:
        assert divide(found, row_bytes) == [0] * len(found)


def test_one_long_row_is_apart_from_many_short_ones() -> None:
    assert divide([500] * 31 + [32_000], llama_8b) == [0] * 31 + [1]
    assert divide([500] * 31 + [32_000], windowed) == [0] * 32
    assert divide([500] * 31 + [32_000], llama_8b, max_groups=1) == [0] * 32
    assert divide([], llama_8b) == []


@given(lengths, st.data())
def test_no_row_is_held_in_more_than_was_planned(longest: list[int], data: st.DataObject) -> None:
    """Planned from the lengths that rows may come to, and held at lengths on the way there, as they join and leave."""
    planned = most_bytes(longest, llama_8b)
    now = [data.draw(st.integers(1, length)) for length in longest]
    held: list[int | None] = [data.draw(st.sampled_from([None, 0, 1, 2, 3, 7])) for _ in longest]
    numbers = regroup(now, held, llama_8b)
    assert len(set(numbers)) <= MAX_GROUPS
    assert size_of(groups_of(now, numbers), llama_8b) <= planned
    fewer = now[: data.draw(st.integers(1, len(now)))]
    assert most_bytes(fewer, llama_8b) <= planned


@given(lengths, st.integers(1, 40_000))
def test_rows_that_are_well_placed_stay(found: list[int], joining: int) -> None:
    numbers = divide(found, llama_8b)
    assert regroup(found, numbers, llama_8b) == numbers
    after = regroup([*found, joining], [*numbers, None], llama_8b)
    if after[:-1] == numbers:
        return
    # rows move only where they would hold too much as they are, wherever the new one joins
    for number in range(max(numbers) + 2):
        groups = groups_of([*found, joining], [*numbers, number])
        if len(groups) <= len(set(after)):
            assert size_of(groups, llama_8b) > most_bytes([*found, joining], llama_8b)


def test_groups_that_are_no_longer_worth_it_become_one() -> None:
    assert regroup([500, 600], [0, 1], llama_8b) in ([0, 0], [1, 1])
    assert regroup([500, 32_000], [0, 1], llama_8b) == [0, 1]


def test_most_rows_stay_where_they_are_when_groups_change() -> None:
    found = [500] * 10 + [30_000] * 3
    numbers = regroup(found, [2] * 10 + [2] * 3, llama_8b)
    assert numbers[:10] == [2] * 10
    assert len(set(numbers[10:])) == 1 and numbers[10] != 2


@pytest.mark.parametrize(
    "found",
    [
        [32_000] + [500] * 31,
        [8000] + [200] * 15,
        [40 + 95 * place for place in range(32)],
        [1000 * (1 + place) for place in range(16)],
        [40 + 950 * place for place in range(64)],
    ],
)
def test_mixed_lengths_take_little_more_than_each_row_alone(found: list[int]) -> None:
    apart = sum(map(llama_8b, found))
    assert size_of(groups_of(found, divide(found, llama_8b)), llama_8b) <= most_bytes(found, llama_8b) <= 1.3 * apart
