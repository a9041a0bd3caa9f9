"""Attention over quantized columns against attention over their dequantized copies."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models import base

from mlx_backend.kv_cache import attention
from mlx_backend.kv_cache.codec import FULL, Part, QuantizedCodec, QuantizedColumns, with_head
from mlx_backend.kv_cache.plan import Precision

pytestmark = pytest.mark.mlx

ROWS, HEADS, KV_HEADS, TOKENS, DIM = 3, 6, 2, 50, 64
SCALE = 0.2


def columns(seed: int, bits: int | None, head: int = 0, dtype: Any = mx.float32) -> Part:
    part = mx.random.normal((ROWS, KV_HEADS, TOKENS, DIM), key=mx.random.key(seed)).astype(dtype)
    codec = FULL if bits is None else QuantizedCodec(Precision(bits, 32), "quantized")
    rest = codec.fetch(codec.encode(part[:, :, head:]), 1)
    return with_head(part[:, :, :head], rest) if head else rest


def copied(part: Part) -> mx.array:
    return part.dequantize() if isinstance(part, QuantizedColumns) else part


def queries(num_tokens: int, dtype: Any = mx.float32) -> mx.array:
    return mx.random.normal((ROWS, HEADS, num_tokens, DIM), key=mx.random.key(9)).astype(dtype)


def masks(num_tokens: int) -> dict[str, Any]:
    visible = mx.random.uniform(shape=(ROWS, 1, num_tokens, TOKENS), key=mx.random.key(5)) < 0.7
    scores = mx.random.normal((ROWS, HEADS, num_tokens, TOKENS), key=mx.random.key(6))
    return {"none": None, "rows": visible, "shared": visible[0, 0], "scores": scores, "causal": "causal"}


def expected(queries: mx.array, keys: Part, values: Part, mask: Any, sinks: Any) -> mx.array:
    full = (queries, copied(keys), copied(values))
    return mx.fast.scaled_dot_product_attention(*full, scale=SCALE, mask=mask, sinks=sinks)


@pytest.mark.parametrize("num_tokens", [1, 7])
@pytest.mark.parametrize("mask", ["none", "rows", "shared", "scores", "causal"])
@pytest.mark.parametrize(("key_bits", "value_bits"), [(8, 8), (8, 4), (6, None), (None, 5)])
@pytest.mark.parametrize("has_sinks", [False, True])
@pytest.mark.parametrize("head", [0, 6])
def test_what_attention_gives(
    num_tokens: int, mask: str, key_bits: int | None, value_bits: int | None, has_sinks: bool, head: int
) -> None:
    keys, values = columns(1, key_bits, head), columns(2, value_bits, head)
    sinks = mx.linspace(-1, 2, HEADS) if has_sinks else None
    given = masks(num_tokens)[mask]
    got = attention.attend(queries(num_tokens), keys, values, None, SCALE, given, sinks)
    assert mx.allclose(got, expected(queries(num_tokens), keys, values, given, sinks), atol=1e-5)


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
@pytest.mark.parametrize("num_tokens", [1, 7])
def test_half_precision_comes_back_as_it_was(dtype: Any, num_tokens: int) -> None:
    keys, values = columns(1, 8, 4, dtype), columns(2, 8, 4, dtype)
    got = attention.attend(queries(num_tokens, dtype), keys, values, None, SCALE, None)
    assert got.dtype == dtype
    assert mx.allclose(got, expected(queries(num_tokens, dtype), keys, values, None, None), atol=0.05)


@pytest.mark.parametrize("mask", ["rows", "scores"])
def test_some_heads_at_a_time(monkeypatch: pytest.MonkeyPatch, mask: str) -> None:
    keys, values, sinks = columns(1, 8), columns(2, 8), mx.linspace(-1, 2, HEADS)
    arguments = (queries(7), keys, values, None, SCALE, masks(7)[mask], sinks)
    whole = attention.attend(*arguments)
    calls: list[tuple[int, ...]] = []
    fused = mx.fast.scaled_dot_product_attention

    def counted(*parts: mx.array, **other: Any) -> mx.array:
        calls.append(parts[1].shape)
        return fused(*parts, **other)

    monkeypatch.setattr(attention, "_MAX_SHADOW_BYTES", 1000)
    monkeypatch.setattr(mx.fast, "scaled_dot_product_attention", counted)
    assert mx.allclose(attention.attend(*arguments), whole, atol=1e-6)
    assert calls == [(ROWS, 1, TOKENS, DIM)] * KV_HEADS


def test_some_heads_at_a_time_hold_no_more_than_some_heads_and_nothing_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """How far results are allocated ahead is a matter of threads: of sixteen three were seen, and eight pass."""
    heads, tokens, num_new = 16, 2048, 8
    codec = QuantizedCodec(Precision(8, 64), "quantized")
    parts = [mx.random.normal((1, heads, tokens, 64), key=mx.random.key(seed)) for seed in (1, 2, 3)]
    keys, values = (codec.fetch(codec.encode(part), num_new) for part in parts[:2])
    asked = parts[2][:, :, :num_new]
    mx.eval(asked, *(array for part in (keys, values) for array in part.arrays))
    del parts
    monkeypatch.setattr(attention, "_MAX_SHADOW_BYTES", 1000)
    base = mx.get_active_memory()
    mx.reset_peak_memory()
    with monkeypatch.context() as patch:
        for name in ("eval", "async_eval", "synchronize"):
            patch.setattr(mx, name, None)
        out = attention.attend(asked, keys, values, None, SCALE, "causal")
    mx.eval(out)
    one_head = 2 * tokens * 64 * 4
    assert mx.get_peak_memory() - base < heads // 2 * one_head


def test_models_call_it_once_it_is_installed() -> None:
    from mlx_lm.models import gpt_oss, llama

    attention.install()
    assert {module.scaled_dot_product_attention for module in (base, llama, gpt_oss)} == {attention.attend}
    part = copied(columns(1, None))
    got = llama.scaled_dot_product_attention(queries(1), part, part, cache=None, scale=SCALE, mask=None)
    assert mx.array_equal(got, expected(queries(1), part, part, None, None))
