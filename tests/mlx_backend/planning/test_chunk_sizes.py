"""The ladder of chunk sizes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mlx_backend.planning.chunk_sizes import most_padding, next_size, padded, padded_sizes, round_down, round_up

LADDER = sorted({1 << power for power in range(20)} | {3 << power for power in range(20)})
COUNTS = st.integers(1, 1 << 17)


@given(COUNTS)
def test_sizes_on_either_side(num_tokens: int) -> None:
    assert round_down(num_tokens) == max(size for size in LADDER if size <= num_tokens)
    assert round_up(num_tokens) == min(size for size in LADDER if size >= num_tokens)


def test_each_size_is_followed_by_the_next() -> None:
    assert [next_size(size) for size in LADDER[:30]] == LADDER[1:31]


@given(st.integers(1, 10_000).flatmap(lambda most: st.tuples(st.integers(1, most), st.just(most))))
def test_a_padded_chunk_is_of_a_known_size_and_never_larger_than_a_chunk_may_be(counts: tuple[int, int]) -> None:
    num_tokens, most = counts
    size = padded(num_tokens, most)
    assert num_tokens <= size <= most
    assert size in padded_sizes(most)
    assert size - num_tokens <= most_padding(most)
    assert size < 1.5 * num_tokens or size <= 16
    assert padded(size, most) == size


@given(st.integers(1, 10_000))
def test_few_sizes_are_padded_to(most: int) -> None:
    sizes = padded_sizes(most)
    assert sizes == sorted(set(sizes)) and sizes[-1] == most
    assert len(sizes) <= 2 * most.bit_length()
    assert most_padding(most) == max(padded(n, most) - n for n in [1, *(size + 1 for size in sizes[:-1])])
