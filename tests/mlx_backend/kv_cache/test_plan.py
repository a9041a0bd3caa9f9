"""What a configuration makes of a model's KV caches: bytes, refusals, and a report that hides nothing. No MLX."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mlx_backend.api.errors import ModelLoadError
from mlx_backend.api.interface import KVCacheConfig
from mlx_backend.kv_cache.plan import (
    GROUP_SIZES,
    CachePlan,
    CacheShape,
    PartShape,
    Precision,
    counted,
    plan_caches,
    report,
)

BF16 = 2


def plain(dim: int = 128, heads: int = 8, value_dim: int | None = None, **other: Any) -> CacheShape:
    values = PartShape(heads, value_dim or dim, BF16)
    return CacheShape("plain", PartShape(heads, dim, BF16), values, **other)


def window(dim: int = 64, size: int = 128) -> CacheShape:
    return CacheShape("sliding-window", PartShape(8, dim, BF16), PartShape(8, dim, BF16), window=size)


LATENT = CacheShape("latent", PartShape(1, 512, BF16), PartShape(1, 64, BF16))
SMALL_LATENT = CacheShape("latent", PartShape(1, 128, BF16), PartShape(1, 32, BF16))
RECURRENT = CacheShape("recurrent", state_bytes=1000)

bits = st.sampled_from([None, 4, 5, 6, 8])
shapes = st.one_of(
    st.builds(plain, st.sampled_from([32, 64, 80, 96, 128, 256]), st.integers(1, 8)),
    st.builds(window, st.sampled_from([64, 96, 128])),
    st.sampled_from([LATENT, SMALL_LATENT, RECURRENT, CacheShape("ChunkedKVCache")]),
)


@st.composite
def configs(draw: st.DrawFn) -> KVCacheConfig:
    chosen = draw(bits), draw(bits), draw(bits)
    if chosen == (None, None, None):
        return KVCacheConfig()
    fields = dict(zip(("bits", "key_bits", "value_bits"), chosen, strict=True))
    group_size = draw(st.sampled_from([None, *GROUP_SIZES]))
    return KVCacheConfig(**fields, group_size=group_size, start=draw(st.sampled_from([None, 0, 7])))


@pytest.mark.parametrize(("bits", "share"), [(8, 0.53), (6, 0.41), (5, 0.34), (4, 0.28)])
def test_the_share_of_bf16(bits: int, share: float) -> None:
    part = PartShape(8, 128, BF16)
    assert part.num_bytes(Precision(bits, 64)) / part.num_bytes(None) == pytest.approx(share, abs=0.005)


@pytest.mark.parametrize("config", [KVCacheConfig(), KVCacheConfig(bits=8, group_size=32)])
def test_plans_that_are_equal_are_one_object(config: KVCacheConfig) -> None:
    """Of 60 layers that are alike one is computed with."""
    plans = plan_caches([plain(), window(), plain(), RECURRENT, window(), plain(), RECURRENT], config)
    assert counted(plans) == [(plans[0], 3), (plans[1], 2), (plans[3], 2)]


@given(st.lists(shapes, min_size=1, max_size=6), configs())
def test_every_plan_is_what_was_asked_for_or_says_why_not(caches: list[CacheShape], config: KVCacheConfig) -> None:
    try:
        plans = plan_caches(caches, config)
    except ModelLoadError as error:
        assert config.is_quantized
        assert str(error).startswith("kv_cache.")
        return
    assert [each.shape for each in plans] == caches
    told = report(plans, config)
    assert sum(each.num_layers for each in told) == len(caches)
    assert any(each.is_quantized for each in plans) == config.is_quantized
    for each in told:
        assert 0 <= each.bytes_per_token <= each.full_bytes_per_token
        for part in each.parts:
            assert part.bits == part.requested_bits or part.note
            assert part.group_size is None or part.dim % part.group_size == 0
        if config.start:
            assert each.start == config.start or each.note
        if config.is_quantized and not each.parts:
            assert each.note


@given(st.lists(shapes, min_size=1, max_size=6), configs())
def test_a_refused_group_size_names_those_that_do(caches: list[CacheShape], config: KVCacheConfig) -> None:
    try:
        plan_caches(caches, config)
    except ModelLoadError as error:
        assume("kv_cache.group_size" in str(error))
        advice = str(error).partition("use kv_cache.group_size ")[2]
        bits = {"key_bits": config.effective_key_bits, "value_bits": config.effective_value_bits}
        named = {int(size) for size in advice.split(" or ")} if advice else set()
        for size in GROUP_SIZES:
            try:
                plan_caches(caches, KVCacheConfig(**bits, group_size=size))
                works = True
            except ModelLoadError:
                works = False
            assert works == (size in named)


def test_the_rotary_part_stays_full_where_groups_do_not_divide_it() -> None:
    config = KVCacheConfig(bits=8)
    (plan,) = plan_caches([SMALL_LATENT], config)
    assert (plan.keys, plan.values) == (Precision(8, 64), None)
    assert plan.bytes_per_token == 128 + 2 * 2 * 2 + 32 * 2
    (told,) = report([plan], config)
    assert [(part.name, part.requested_bits, part.bits) for part in told.parts] == [("latent", 8, 8), ("rope", 8, None)]
    assert "groups of 64 do not divide its 32" in told.parts[1].note


def test_deepseek_r1_at_8_bits() -> None:
    (plan,) = plan_caches([LATENT], KVCacheConfig(bits=8))
    assert plan.bytes_per_token == 576 + 9 * 4
    assert CachePlan(LATENT).bytes_per_token == 1152


def test_alike_layers_are_reported_once() -> None:
    config = KVCacheConfig(bits=4, start=16)
    told = report(plan_caches([window(), plain(), window(), plain(), RECURRENT], config), config)
    assert [(each.kind, each.num_layers, each.start) for each in told] == [
        ("sliding-window", 2, 0),
        ("plain", 2, 16),
        ("recurrent", 1, 0),
    ]
    assert "window" in told[0].note
    assert "stays in full precision" in told[2].note


@pytest.mark.parametrize(
    ("caches", "config", "message"),
    [
        ([CacheShape("ChunkedKVCache")], {"bits": 8}, r"a kind that cannot be quantized \(ChunkedKVCache\)"),
        ([RECURRENT], {"bits": 8}, "keeps no keys and values"),
        ([LATENT], {"key_bits": 8}, "one latent, which has one precision; set kv_cache.bits"),
        ([LATENT], {"bits": 8, "value_bits": 4}, "one latent, which has one precision"),
        (
            [plain(96)],
            {"bits": 8},
            "group_size 64 does not divide .* heads of 96; use kv_cache.group_size 32",
        ),
        ([plain(128), window(64)], {"bits": 8, "group_size": 128}, "heads of 64 and 128; use .* 32 or 64"),
        ([plain(80)], {"bits": 8}, "heads of 80; no group size does; leave it unset"),
        ([window()], {"bits": 8, "start": 4}, "kv_cache.start: all of this model's layers attend to a sliding window"),
    ],
)
def test_refusals(caches: list[CacheShape], config: dict[str, int], message: str) -> None:
    with pytest.raises(ModelLoadError, match=message):
        plan_caches(caches, KVCacheConfig(**config))


def test_a_part_that_stays_full_is_not_held_against_its_groups() -> None:
    (plan,) = plan_caches([plain(128, value_dim=80)], KVCacheConfig(key_bits=8))
    assert (plan.keys, plan.values) == (Precision(8, 64), None)


@pytest.mark.parametrize("field", ["group_size", "start"])
def test_what_only_says_how_is_refused_without_bits(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field} applies only to a quantized cache; set kv_cache.bits too"):
        KVCacheConfig(**{field: 64})
