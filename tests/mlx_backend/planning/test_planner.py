"""Plans for one model on several machines: what fits, what does not, and whether the advice is true. No MLX."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_backend.api.errors import ModelLoadError
from mlx_backend.api.interface import KVCacheConfig
from mlx_backend.kv_cache.plan import CacheShape, PartShape
from mlx_backend.planning.machines import find_machine, load_machines
from mlx_backend.planning.memory import largest_context
from mlx_backend.planning.planner import build_plan, memory_by_context
from tests.mlx_backend.planning.test_memory import R1 as DENSE_R1

R1 = replace(DENSE_R1, routed_active_bytes=12 * 10**9, routed_share=8 / 256, num_full_attention_layers=61)
CACHES = tuple([CacheShape("latent", PartShape(1, 512, 2), PartShape(1, 64, 2))] * 61)


def test_r1_on_one_m3_ultra() -> None:
    plan = build_plan(R1, CACHES, find_machine("m3-ultra-512"), KVCacheConfig())
    assert plan.fits
    one = plan.rows[0]
    assert one.memory is not None and one.decode is not None and one.prefill is not None and one.ttft_s is not None
    assert one.memory.context == R1.context_length
    assert one.memory.prefill_step < 2048  # the transient, not the KV cache, is what presses
    assert one.decode.low <= one.decode.value <= one.decode.high
    assert one.ttft_s == one.memory.context / one.prefill.value


def test_r1_on_a_192_gb_mac_says_that_nothing_helps() -> None:
    plan = build_plan(R1, CACHES, find_machine("m2-ultra-192"), KVCacheConfig())
    assert not plan.fits
    (advice,) = plan.advice
    assert "No useful quantization of this model fits" in advice
    assert "294 GB" in advice


def test_quantization_is_advised_where_it_fits() -> None:
    plan = build_plan(replace(R1, weights_bytes=713 * 10**9), CACHES, find_machine("m3-ultra-512"), KVCacheConfig())
    assert not plan.fits
    advice = next(line for line in plan.advice if line.startswith("Quantize"))
    bits = int(re.search(r"to (\d) bits", advice)[1])  # type: ignore[index]
    smaller = replace(R1, weights_bytes=round(R1.num_parameters * (bits + 0.5) / 8))
    assert build_plan(smaller, CACHES, find_machine("m3-ultra-512"), KVCacheConfig()).fits


def test_raising_the_limit_is_advised_where_it_helps() -> None:
    machine = find_machine("m3-ultra-512")
    plan = build_plan(R1, CACHES, machine, KVCacheConfig(), users=(8,))
    advice, wiring = plan.advice
    assert "377.6 GB, are wired and requests are batched" in wiring
    said = int(re.search(r"wired_limit_mb=(\d+)", advice)[1])  # type: ignore[index]
    assert machine.gpu_limit_bytes < said * 2**20 < machine.memory_bytes
    raised = build_plan(R1, CACHES, machine, KVCacheConfig(), users=(8,), budget_bytes=said * 2**20)
    then = re.search(r"then ([\d,]+) tokens fit for 8 users", advice)
    assert then is not None and raised.rows[0].memory is not None
    assert int(then[1].replace(",", "")) == raised.rows[0].memory.context


def test_a_small_context_fits_everybody_and_nothing_is_advised() -> None:
    plan = build_plan(R1, CACHES, find_machine("m3-ultra-512"), KVCacheConfig(), context=4096)
    assert [row.memory.context for row in plan.rows if row.memory] == [4096] * 4
    assert len(plan.advice) == 1  # that the weights are wired


def test_a_kv_cache_that_cannot_be_is_refused() -> None:
    with pytest.raises(ModelLoadError, match="one latent"):
        build_plan(R1, CACHES, find_machine("m3-ultra-512"), KVCacheConfig(key_bits=8))


def test_a_quantized_kv_cache_gives_more_context_where_that_is_what_is_short() -> None:
    plan = build_plan(R1, CACHES, find_machine("m3-ultra-512"), KVCacheConfig(), budget_bytes=385 * 10**9)
    contexts = {choice.bits: choice.context or 0 for choice in plan.kv_choices}
    assert contexts[None] <= contexts[8] <= contexts[4]
    assert contexts[None] < contexts[4]


@given(st.sampled_from(load_machines()), st.integers(1, 8), st.integers(1, 8))
def test_more_users_never_get_more_context(machine: object, few: int, more: int) -> None:
    plan = build_plan(R1, CACHES, machine, KVCacheConfig(), users=(few, few + more))  # type: ignore[arg-type]
    first, second = (row.memory.context if row.memory else 0 for row in plan.rows)
    assert first >= second


def test_the_parts_at_every_context_add_up() -> None:
    plan = build_plan(R1, CACHES, find_machine("m3-ultra-512"), KVCacheConfig())
    found = memory_by_context(plan, [1000, 10_000, 100_000])
    assert [memory.context for memory in found] == [1000, 10_000, 100_000]
    assert [memory.total_bytes for memory in found] == sorted(memory.total_bytes for memory in found)
    fitting = largest_context(
        replace(R1, context_length=1000), plan.caches, budget_bytes=plan.budget_bytes, num_users=1, reserve_bytes=0
    )
    assert fitting is not None and found[0].prefill_step == fitting.prefill_step
