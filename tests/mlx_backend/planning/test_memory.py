"""The model of memory: monotone, additive, and what the published peaks of a DeepSeek-V3-class model say. No MLX."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_backend.api.interface import KVCacheConfig
from mlx_backend.kv_cache.allocation import EAGER_BYTES
from mlx_backend.kv_cache.plan import CachePlan, CacheShape, PartShape, counted, plan_caches
from mlx_backend.planning.memory import (
    PREFILL_STEPS,
    AttentionShape,
    ModelShape,
    batch_bytes,
    decode_bytes,
    kv_bytes,
    largest_context,
    memory_of,
    prefill_bytes,
)

GB = 10**9
R1 = ModelShape(
    model_type="deepseek_v3",
    num_parameters=671_026_000_000,
    weights_bytes=377_600_000_000,
    active_parameters=36_630_000_000,
    active_bytes=20_760_000_000,
    num_layers=61,
    hidden_size=7168,
    widest=18_432,
    vocab_size=129_280,
    context_length=163_840,
    itemsize=2,
    attention=AttentionShape(num_heads=128, key_dim=128, value_dim=128, is_latent=True),
)
R1_CACHES = tuple([CachePlan(CacheShape("latent", PartShape(1, 512, 2), PartShape(1, 64, 2)))] * 61)

plans = st.lists(
    st.builds(
        CachePlan,
        st.builds(
            CacheShape,
            st.just("plain"),
            st.builds(PartShape, st.integers(1, 8), st.sampled_from([64, 128]), st.just(2)),
            st.builds(PartShape, st.integers(1, 8), st.sampled_from([64, 128]), st.just(2)),
            window=st.sampled_from([None, None, 128, 4096]),
        ),
    ),
    min_size=1,
    max_size=4,
)


@pytest.mark.parametrize(("context", "measured"), [(4096, 383.21), (8192, 388.34), (16384, 398.61)])
def test_the_published_peaks_of_a_4_bit_deepseek_v3(context: int, measured: float) -> None:
    """mlx-lm#839: peak GB of a prefill with steps of 2,048."""
    memory = memory_of(R1, R1_CACHES, context=context, num_users=1, prefill_step=2048, reserve_bytes=0)
    assert memory.total_bytes / GB == pytest.approx(measured, abs=1.0)


GROUPED = replace(
    R1,
    attention=AttentionShape(
        num_heads=128, key_dim=128, value_dim=128, rope_dim=64, latent_dim=512, is_latent=True, is_grouped=True
    ),
)


def test_all_of_deepseek_r1s_context_in_large_chunks() -> None:
    """In chunks of 64 tokens the scores of all heads take 17 GB, and 57 GB in chunks of 512."""
    assert prefill_bytes(R1, R1_CACHES, 64, 163_840) > 16 * GB
    assert prefill_bytes(GROUPED, R1_CACHES, 512, 163_840) < 2 * GB
    for users in (1, 2):
        found = largest_context(GROUPED, R1_CACHES, budget_bytes=412 * GB, num_users=users, reserve_bytes=3 * GB)
        assert found is not None and (found.context, found.prefill_step) == (163_840, 2048)
        assert found.transient_bytes < 4 * GB


@given(st.integers(1, 200_000), st.integers(0, 5000), st.booleans())
def test_groups_of_heads_take_no_less_for_more(tokens: int, more: int, has_fused: bool) -> None:
    def needed(step: int, context: int) -> int:
        return prefill_bytes(GROUPED, R1_CACHES, step, context, has_fused=has_fused)

    for step, smaller in pairwise(PREFILL_STEPS):
        assert needed(smaller, tokens) <= needed(step, tokens) <= needed(step, tokens + more)


def test_kv_bytes_of_deepseek_r1() -> None:
    assert kv_bytes(R1_CACHES, 256) == 256 * 70_272
    assert kv_bytes(R1_CACHES, 1) == kv_bytes(R1_CACHES, 256)


def test_a_window_is_never_more_than_its_tokens() -> None:
    shape = CacheShape("sliding-window", PartShape(8, 64, 2), PartShape(8, 64, 2), window=128)
    assert kv_bytes([CachePlan(shape)], 10) == kv_bytes([CachePlan(shape)], 100_000) == 128 * 2048


def test_a_start_in_full_precision_counts_as_it_is_held() -> None:
    shape = CacheShape("plain", PartShape(2, 64, 2), PartShape(2, 64, 2))
    (plan,) = plan_caches([shape], KVCacheConfig(bits=8, start=10))
    assert kv_bytes([plan], 10) == 10 * 512
    assert kv_bytes([plan], 11) == 10 * 512 + 256 * 272


@given(plans, st.integers(1, 200_000), st.integers(0, 5000), st.integers(1, 8))
def test_more_tokens_and_more_rows_take_no_less(found: list[CachePlan], tokens: int, more: int, rows: int) -> None:
    assert kv_bytes(found, tokens, rows) <= kv_bytes(found, tokens + more, rows)
    assert kv_bytes(found, tokens, rows) == rows * kv_bytes(found, tokens)
    for step, smaller in pairwise(PREFILL_STEPS):
        assert prefill_bytes(R1, found, smaller, tokens) <= prefill_bytes(R1, found, step, tokens)


@given(st.integers(380, 700), st.integers(1, 8), st.sampled_from([None, 8, 4]))
def test_the_largest_context_fits_and_one_more_token_does_not(budget: int, users: int, bits: int | None) -> None:
    caches = plan_caches([plan.shape for plan in R1_CACHES], KVCacheConfig(bits=bits))
    found = largest_context(R1, caches, budget_bytes=budget * GB, num_users=users, reserve_bytes=3 * GB)
    if found is None:
        least = memory_of(R1, caches, context=1, num_users=users, prefill_step=64, reserve_bytes=3 * GB)
        assert least.total_bytes > budget * GB
        return
    assert found.total_bytes <= budget * GB
    assert found.context == R1.context_length or all(
        memory_of(
            R1, caches, context=found.context + 1, num_users=users, prefill_step=step, reserve_bytes=3 * GB
        ).total_bytes
        > budget * GB
        for step in PREFILL_STEPS
    )
    larger = [step for step in PREFILL_STEPS if step > found.prefill_step]
    for step in larger:
        memory = memory_of(R1, caches, context=found.context, num_users=users, prefill_step=step, reserve_bytes=3 * GB)
        assert memory.total_bytes > budget * GB


def test_a_model_that_does_not_fit_at_all() -> None:
    assert largest_context(R1, R1_CACHES, budget_bytes=300 * GB, num_users=1, reserve_bytes=0) is None


def test_fused_attention_needs_no_scores() -> None:
    fused = replace(R1, attention=AttentionShape(num_heads=128, key_dim=128, value_dim=128))
    odd = replace(R1, attention=AttentionShape(num_heads=128, key_dim=192, value_dim=192))
    assert prefill_bytes(fused, [], 2048, 65_536) < GB
    assert prefill_bytes(odd, [], 2048, 65_536) > 70 * GB


@given(plans, st.integers(1, 40), st.integers(1, 20_000))
def test_a_batch_takes_no_less_than_its_rows(found: list[CachePlan], rows: int, longest: int) -> None:
    assert batch_bytes(found, rows, longest) >= sum(
        rows * plan.bytes_per_token * min(longest, plan.shape.window or longest) for plan in found
    )
    assert batch_bytes(found, rows, longest) <= batch_bytes(found, rows + 1, longest + 1)
    assert batch_bytes(found, 0, longest) == 0


@given(plans, st.integers(1, 4), st.integers(1, 40), st.integers(1, 20_000))
def test_plans_that_are_one_object_take_what_copies_of_them_take(
    found: list[CachePlan], times: int, rows: int, context: int
) -> None:
    shared, copies = found * times, [replace(plan) for _ in range(times) for plan in found]
    assert len(counted(shared)) == len(found) <= len(counted(copies)) == len(copies)
    assert batch_bytes(shared, rows, context) == batch_bytes(copies, rows, context)
    assert kv_bytes(shared, context, rows, 64) == kv_bytes(copies, context, rows, 64)
    assert prefill_bytes(R1, shared, 64, context) == prefill_bytes(R1, copies, 64, context)
    assert decode_bytes(R1, shared, context, rows) == decode_bytes(R1, copies, context, rows)


WINDOWED = CachePlan(CacheShape("plain", PartShape(2, 64, 2), PartShape(2, 64, 2), window=512))


def test_a_window_holds_its_last_chunk_beside_its_own_tokens() -> None:
    """Until the next step, as `kv_cache.quantized` and mlx-lm's own caches do."""
    token = WINDOWED.bytes_per_token
    assert kv_bytes([WINDOWED], 10_000) == 512 * token
    assert kv_bytes([WINDOWED], 10_000, chunk=2048) == (512 + 2048) * token
    assert kv_bytes([WINDOWED], 1000, chunk=2048) == 1024 * token  # no more than there is


def test_a_decode_step_needs_the_largest_cache_once_more() -> None:
    """Where rows come or go a large cache is moved, one layer after the other, and the small ones together."""
    large = CachePlan(CacheShape("plain", PartShape(8, 128, 2), PartShape(8, 128, 2)))
    small = CachePlan(CacheShape("plain", PartShape(1, 64, 2), PartShape(1, 64, 2)))
    shape = replace(R1, attention=None)
    few, many = 256, 16_384
    assert batch_bytes([small], 1, few) <= EAGER_BYTES < batch_bytes([large], 1, many)
    base = decode_bytes(shape, [], few, 1)
    assert decode_bytes(shape, [small] * 3, few, 1) - base == batch_bytes([small], 1, few) * 4
    base = decode_bytes(shape, [], many, 1)
    assert decode_bytes(shape, [large] * 3, many, 1) - base == batch_bytes([large], 1, many) + 3 * EAGER_BYTES
