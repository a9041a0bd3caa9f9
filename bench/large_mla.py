"""Attention over latents: peak and time of a chunk, and time of a decode step; the model's own beside Pippin's.

The figures of DeepSeek R1 are planned; the others are measured on a small model of its kind (32 heads, 2 layers).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

GROUP_BYTES = 32 << 20
"""Bound for the small model, in proportion to its scores."""
STEPS, CONTEXTS = (64, 256), (1024, 4096)
ROWS, LENGTHS = (1, 8), (1024, 4096, 16384)
NUM_STEPS = 4
_HEADS, _DIM, _ROPE, _LATENT = 32, 32, 16, 128
_CONFIG: dict[str, Any] = {
    "model_type": "deepseek_v3",
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": _HEADS,
    "num_key_value_heads": _HEADS,
    "n_routed_experts": None,
    "q_lora_rank": 64,
    "kv_lora_rank": _LATENT,
    "qk_rope_head_dim": _ROPE,
    "qk_nope_head_dim": _DIM,
    "v_head_dim": _DIM,
    "max_position_embeddings": 1 << 16,
    "rope_scaling": None,
}


def print_tables() -> None:
    """Print a table of R1's planned figures, one of chunks, and one of decode steps."""
    from mlx_backend.kv_cache import attention

    attention.install()
    for table in (_planned(), _chunks(), _decode()):
        Console(width=120).print(table)


def _planned() -> Table:
    from mlx_backend.model.skeleton import Quantization, from_config
    from mlx_backend.planning.memory import prefill_bytes

    profile = Path(__file__).parents[1] / "server" / "profiles" / "deepseek-r1-4bit.json"
    shape = from_config(json.loads(profile.read_text()), Quantization(bits=4, group_size=64)).shape
    assert shape.attention is not None
    own = replace(shape, attention=replace(shape.attention, is_grouped=False))
    table = _table("R1: context", "chunk", "all heads at once, GB", "some at a time, GB")
    for context in (16_384, 65_536, 163_840):
        for step in (64, 512, 2048):
            taken = (prefill_bytes(each, [], step, context) / 1e9 for each in (own, shape))
            table.add_row(f"{context:,}", str(step), *(f"{each:.2f}" for each in taken))
    return table


def _chunks() -> Table:
    from mlx_backend.kv_cache import latent_attention, latent_groups

    model, bound = _model(), latent_groups.MOST_GROUP_BYTES
    table = _table("small: context", "chunk", "own, MB", "own, ms", "groups, MB", "groups, ms", "same token")
    latent_groups.MOST_GROUP_BYTES = GROUP_BYTES
    for context in CONTEXTS:
        for step in STEPS:
            found = []
            for change in (latent_attention.restore, latent_attention.defer):
                change(model)
                found.append(_chunk(model, context, step))
            (own, own_ms, expected), (peak, took_ms, got) = found
            cells = (f"{own / 1e6:.1f}", f"{own_ms:.0f}", f"{peak / 1e6:.1f}", f"{took_ms:.0f}")
            table.add_row(str(context), str(step), *cells, "yes" if got == expected else "NO")
    latent_groups.MOST_GROUP_BYTES = bound
    return table


def _chunk(model: Any, context: int, step: int) -> tuple[int, float, int]:
    """Return (peak bytes, best milliseconds of three, the next token) of the last chunk of `context`."""
    import mlx.core as mx

    caches = _filled(model, 1, context)
    tokens = mx.arange(step)[None] % 500
    least = float("inf")
    peak = token = 0
    for _ in range(3):
        for cache in caches:
            cache.offset = context - step
        mx.clear_cache()
        base = mx.get_active_memory()
        mx.reset_peak_memory()
        began = time.perf_counter()
        following = mx.argmax(model(tokens, cache=caches)[0, -1])
        mx.eval(following, [cache.state for cache in caches])
        least = min(least, time.perf_counter() - began)
        peak, token = mx.get_peak_memory() - base, int(following.item())
    return peak, 1e3 * least, token


def _decode() -> Table:
    from mlx_backend.kv_cache import latent_attention

    model = _model()
    table = _table("small: rows", "context", "a product per head, ms", "one per row, ms", "same tokens")
    for rows in ROWS:
        for length in LENGTHS:
            ways: tuple[Callable[[Any], None], ...] = (latent_attention.restore, latent_attention.defer)
            found = []
            for change in ways:
                change(model)
                found.append(_steps(model, rows, length))
            (own_ms, expected), (took_ms, got) = found
            same = "yes" if got == expected else "NO"
            table.add_row(str(rows), str(length), f"{own_ms:.1f}", f"{took_ms:.1f}", same)
    return table


def _steps(model: Any, rows: int, length: int) -> tuple[float, list[list[int]]]:
    """Return (best milliseconds of a step, the tokens of all steps)."""
    import mlx.core as mx

    caches = _filled(model, rows, length)
    for cache in caches:
        cache.offset = length - NUM_STEPS
    tokens, chosen, least = mx.arange(rows)[:, None], [], float("inf")
    for _ in range(NUM_STEPS):
        began = time.perf_counter()
        tokens = mx.argmax(model(tokens, cache=caches)[:, -1], axis=-1)[:, None]
        mx.eval(tokens)
        least = min(least, time.perf_counter() - began)
        chosen.append(tokens[:, 0].tolist())
    return 1e3 * least, chosen


def _filled(model: Any, rows: int, length: int) -> list[Any]:
    """Return caches with `length` columns of random numbers."""
    import mlx.core as mx
    from mlx_lm.models.cache import make_prompt_cache

    caches: list[Any] = make_prompt_cache(model)
    for place, cache in enumerate(caches):
        keys = (mx.random.key(2 * place), mx.random.key(2 * place + 1))
        parts = [
            mx.random.normal((rows, 1, length, dim), key=key) for dim, key in zip((_LATENT, _ROPE), keys, strict=True)
        ]
        cache.update_and_fetch(*parts)
    mx.eval([cache.state for cache in caches])
    return caches


def _model() -> Any:
    import mlx.core as mx
    from mlx_lm.models import deepseek_v3

    mx.random.seed(0)
    model = deepseek_v3.Model(deepseek_v3.ModelArgs.from_dict(_CONFIG))
    mx.eval(model.parameters())
    return model


def _table(*columns: str) -> Table:
    table = Table(*columns)
    for column in table.columns:
        column.justify = "right"
    return table
