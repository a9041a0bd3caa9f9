from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_backend.engine.throughput import ThroughputEstimate


def test_nothing_measured_is_a_small_chunk() -> None:
    assert ThroughputEstimate().tokens_for(0, 10.0, 2048) == 32
    assert ThroughputEstimate().tokens_for(0, 10.0, 8) == 8


def test_a_constant_speed_is_used_in_full() -> None:
    pace = ThroughputEstimate()
    pace.observe_chunk(0, 100, 0.1)
    assert pace.tokens_for(0, 0.2, 2048) == 192  # 200, rounded down so that sizes repeat
    assert pace.tokens_for(0, 0.016, 2048) == 16
    assert pace.tokens_for(0, 100.0, 2048) == 2048


def test_bad_news_is_believed_sooner_than_good() -> None:
    slower, faster = ThroughputEstimate(), ThroughputEstimate()
    for pace in (slower, faster):
        pace.observe_chunk(0, 100, 1.0)
    slower.observe_chunk(0, 100, 2.0)
    faster.observe_chunk(0, 100, 0.5)
    assert (slower.token_s(0) or 0) > 0.0165
    assert (faster.token_s(0) or 0) > 0.008


def test_a_later_position_is_planned_dearer_until_it_is_measured() -> None:
    pace = ThroughputEstimate()
    pace.observe_chunk(0, 100, 0.1)
    planned = pace.token_s(10_000)
    assert planned is not None and planned > 0.002
    pace.observe_chunk(10_000, 100, 0.11)
    assert pace.token_s(10_000) == 0.0011


@given(
    fixed_s=st.floats(0.0, 0.1),
    token_s=st.floats(1e-5, 1e-2),
    growth=st.floats(0.0, 1e-6),
    target_s=st.floats(0.05, 1.0),
)
def test_chunks_settle_within_the_target_where_it_can_be_met(
    fixed_s: float, token_s: float, growth: float, target_s: float
) -> None:
    """Over a whole prompt, with a fixed cost per chunk and a cost that grows with the position."""
    pace, start, late = ThroughputEstimate(), 0, 0
    num_chunks = 0
    while start < 8192 and num_chunks < 500:
        size = pace.tokens_for(start, target_s, 2048)
        seconds = fixed_s + size * (token_s + growth * start)
        could_be_met = fixed_s + token_s + growth * start <= target_s
        late += could_be_met and num_chunks > 20 and seconds > 1.3 * target_s and size > 1
        pace.observe_chunk(start, size, seconds)
        start += size
        num_chunks += 1
    assert late == 0


def test_one_slow_step_is_not_the_pace() -> None:
    pace = ThroughputEstimate()
    for _ in range(50):
        pace.observe_decode(0.01)
    pace.observe_decode(1.0)
    assert 0.01 < pace.decode_s < 0.3
    for _ in range(50):
        pace.observe_decode(0.01)
    assert pace.decode_s == pytest.approx(0.01, rel=0.1)


def test_restoring_and_computing_are_measured_apart() -> None:
    pace = ThroughputEstimate()
    pace.observe_chunk(0, 100, 0.001, is_known=True)
    assert pace.token_s(0) is None
    assert pace.restored_token_s == pytest.approx(0.00001)
    pace.observe_chunk(0, 100, 1.0)
    assert pace.token_s(0) == pytest.approx(0.01)
    assert pace.restored_token_s == pytest.approx(0.00001)
    assert pace.restorable_for(0.005, 10_000) in (499, 500)


@given(
    fixed_s=st.floats(0.0, 1.0),
    token_s=st.floats(1e-5, 1e-2),
    sizes=st.tuples(st.integers(1, 40), st.integers(100, 2000)),
)
def test_the_fixed_cost_of_a_chunk_is_told_from_that_of_its_tokens(
    fixed_s: float, token_s: float, sizes: tuple[int, int]
) -> None:
    estimate = ThroughputEstimate()
    for size in sizes:
        estimate.observe_chunk(0, size, fixed_s + size * token_s)
    assert estimate.fixed_s == pytest.approx(fixed_s, abs=1e-9)
    assert estimate.token_s(0) == pytest.approx(token_s, rel=1e-3, abs=1e-9)
    assert estimate.chunk_s(0, 100) == pytest.approx(fixed_s + 100 * token_s, rel=1e-3)


def time_to_first_token(num_tokens: int, decode_s: float, fixed_s: float, token_s: float, *, beside: bool) -> float:
    """Seconds of a prompt's chunks, of the decode steps between them, and of its first token."""
    estimate, took, start = ThroughputEstimate(), 0.0, 0
    for _ in range(20):
        estimate.observe_decode(decode_s)
    while start < num_tokens:
        budget_s = max(0.15 - decode_s if beside else 2.0, estimate.least_chunk_s)
        size = min(estimate.tokens_for(start, budget_s, 2048), num_tokens - start)
        seconds = fixed_s + size * token_s
        estimate.observe_chunk(start, size, seconds)
        took += seconds + beside * decode_s
        start += size
        assert took < 3600, "it starves"
    return took + decode_s


def experts_s(num_tokens: int) -> float:
    """A chunk of a mixture of experts: more tokens read more of its weights, until they read all."""
    return 0.05 + 0.45 * (1 - 0.97**num_tokens) + 0.002 * num_tokens


@given(st.lists(st.integers(1, 12), max_size=30), st.sampled_from([0.05, 0.1, 0.2, 0.4]))
def test_small_chunks_do_not_hide_that_large_ones_pay(leftovers: list[int], decode_s: float) -> None:
    """A prompt is computed beside decodes after any number of leftovers, whose few tokens cost much each."""
    estimate = ThroughputEstimate()
    for _ in range(20):
        estimate.observe_decode(decode_s)
    for size in (32, 168, *leftovers):
        estimate.observe_chunk(0, size, experts_s(size))
    took, start = 0.0, 0
    while start < 200:
        size = max(estimate.tokens_for(0, max(0.15 - decode_s, estimate.least_chunk_s), 2048), 1)
        size = min(max(size, estimate.efficient_tokens(0, 2.0, 2048)), 200 - start)
        estimate.observe_chunk(0, size, experts_s(size))
        took += experts_s(size) + decode_s
        start += size
    assert took + decode_s <= 2.5 * (experts_s(200) + decode_s)


def test_an_efficient_chunk_takes_no_longer_than_it_may() -> None:
    estimate = ThroughputEstimate()
    assert estimate.efficient_tokens(0, 2.0, 2048) == 1
    estimate.observe_chunk(0, 512, 1.0)
    for _ in range(20):
        estimate.observe_decode(1000.0)
    assert estimate.efficient_tokens(0, 1.0, 2048) == 512
    assert estimate.efficient_tokens(0, 2.0, 2048) == 1024
    assert estimate.efficient_tokens(0, 2.0, 700) == 700
    assert estimate.efficient_tokens(5000, 1.0, 2048) < 512


@pytest.mark.parametrize("decode_s", [0.005, 0.02, 0.075, 0.16, 0.5, 2.0])
@pytest.mark.parametrize(("fixed_share", "token_s"), [(0.0, 0.0025), (0.6, 0.001), (1.0, 0.0005), (1.0, 0.005)])
@pytest.mark.parametrize("num_tokens", [2000, 8000])
def test_no_prompt_starves_beside_a_slow_decode(
    decode_s: float, fixed_share: float, token_s: float, num_tokens: int
) -> None:
    """A chunk costs `fixed_share` of a decode step, whatever its size: the weights are read for both."""
    times = [
        time_to_first_token(num_tokens, decode_s, fixed_share * decode_s, token_s, beside=beside)
        for beside in (False, True)
    ]
    assert times[1] <= 3.0 * times[0]


def test_where_only_large_chunks_were_measured_a_small_one_is_not_taken_for_as_slow() -> None:
    throughput = ThroughputEstimate()
    throughput.observe_decode(0.01)
    for start, num_tokens in ((0, 16), (0, 384), (1024, 256)):
        throughput.observe_chunk(start, num_tokens, 0.02 + 0.005 * num_tokens)
    num_tokens = throughput.efficient_tokens(1024, 1.0, 2048)
    assert 0.02 + 0.005 * num_tokens < 0.1
    assert throughput.efficient_chunk_s < 0.1
