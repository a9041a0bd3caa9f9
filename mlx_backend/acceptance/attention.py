"""Fused attention by head size and mask: which sizes keep no score matrix, and the peak of those that keep one."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import mlx.core as mx

from mlx_backend.acceptance.checks import Check, Options, Outcome
from mlx_backend.kv_cache.latent_groups import FUSED_HEAD_DIMS

HEAD_DIMS = (64, 72, 80, 96, 128, 192, 256)
MASKS = ("none", "causal", "array")
_HEADS = 8


def run(options: Options, report: Callable[[str], None]) -> Outcome:
    """Measure each head size with each mask; on Metal, check the head sizes that the memory model treats as fused."""
    is_gpu = mx.default_device() != mx.cpu
    queries, keys = (2048, 8192) if is_gpu and not options.is_quick else (64, 256)
    figures: dict[str, Any] = {"queries": queries, "keys": keys, "heads": _HEADS, "rows": []}
    checks = []
    score_bytes = _HEADS * queries * keys * 2
    for head_dim in HEAD_DIMS:
        report(f"head size {head_dim}")
        for mask in MASKS:
            fused_bytes, seconds = _measure(_fast, head_dim, mask, queries, keys)
            plain_bytes, _ = _measure(_plain, head_dim, mask, queries, keys)
            is_fused = fused_bytes < score_bytes / 2
            figures["rows"].append(
                {
                    "head_dim": head_dim,
                    "mask": mask,
                    "is_fused": is_fused,
                    "peak_bytes": fused_bytes,
                    "fallback_bytes": plain_bytes,
                    "ms": 1000 * seconds,
                }
            )
            if mx.metal.is_available() and head_dim in FUSED_HEAD_DIMS:
                name = f"head size {head_dim}, mask {mask}: peak of fused attention"
                checks.append(Check(name=name, measured=fused_bytes, high=score_bytes / 2, unit="bytes"))
    return Outcome(figures=figures, checks=checks)


def _measure(attend: Callable[..., Any], head_dim: int, mask: str, queries: int, keys: int) -> tuple[int, float]:
    """Return (peak above inputs and output, seconds of a second run)."""
    mx.random.seed(0)
    query = mx.random.normal((1, _HEADS, queries, head_dim)).astype(mx.float16)
    key = mx.random.normal((1, _HEADS, keys, head_dim)).astype(mx.float16)
    given: Any = {"none": None, "causal": "causal", "array": mx.zeros((queries, keys), dtype=mx.float16)}[mask]
    mx.eval(query, key, *([given] if mask == "array" else []))
    mx.clear_cache()
    base, seconds = mx.get_active_memory(), 0.0
    mx.reset_peak_memory()
    for _ in range(2):
        began_at = time.perf_counter()
        result = attend(query, key, given)
        mx.eval(result)
        seconds = time.perf_counter() - began_at
        size = result.nbytes
        del result
    return max(0, mx.get_peak_memory() - base - size), seconds


def _fast(query: Any, key: Any, mask: Any) -> Any:
    return mx.fast.scaled_dot_product_attention(query, key, key, scale=query.shape[-1] ** -0.5, mask=mask)


def _plain(query: Any, key: Any, mask: Any) -> Any:
    scores = (query * query.shape[-1] ** -0.5) @ key.swapaxes(-1, -2)
    if mask == "causal":
        allowed = mx.arange(key.shape[-2]) <= mx.arange(query.shape[-2])[:, None] + key.shape[-2] - query.shape[-2]
        scores = mx.where(allowed, scores, -mx.inf)
    elif mask is not None:
        scores = scores + mask
    return mx.softmax(scores, axis=-1) @ key
