"""Bytes that a machine leaves for weights, beside KV caches and a prefill; human-readable sizes. No MLX."""

from __future__ import annotations

import re
from collections.abc import Sequence

from mlx_backend.conversion.errors import ConversionError
from mlx_backend.kv_cache.plan import CachePlan
from mlx_backend.planning.memory import ModelShape, memory_of

PREFILL_STEP = 512
"""Tokens of a prefill chunk that room is left for: with fewer, prompts take much longer."""
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


def weights_budget(
    shape: ModelShape,
    plans: Sequence[CachePlan],
    *,
    limit_bytes: int,
    context: int,
    num_users: int,
    reserve_bytes: int,
) -> int:
    """Return the bytes for weights beside `num_users` contexts of `context` tokens; negative if nothing is left.

    `limit_bytes`: the GPU's limit. `shape` may be that of other weights of the same model.
    """
    memory = memory_of(
        shape,
        plans,
        context=context,
        num_users=num_users,
        prefill_step=min(PREFILL_STEP, context),
        reserve_bytes=reserve_bytes,
    )
    return limit_bytes - (memory.total_bytes - memory.weights_bytes)


def read_bytes(text: str) -> int:
    """Return `412GB`, `380GiB` or `7e9` as bytes. Raises ConversionError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?(?:e\d{1,2})?)\s*([KMGT]?I?)B?", text.strip().upper().replace("E", "e"))
    if found is None or found[2] == "I":
        raise ConversionError(f"{text!r} is no size; write it as 412GB or 380GiB")
    return round(float(found[1]) * _UNITS[found[2]])


def write_bytes(num_bytes: int) -> str:
    """Return a human-readable size: `412.3 GB`, `2.40 MB`."""
    return f"{num_bytes / 1e9:,.1f} GB" if num_bytes >= 10**9 else f"{num_bytes / 1e6:,.2f} MB"


def read_tokens(text: str) -> int:
    """Return `32k`, `128K` or `4096` as tokens; a k is 1,024 of them. Raises ConversionError."""
    found = re.fullmatch(r"(\d{1,9})\s*(k?)", text.strip().lower())
    if found is None or int(found[1]) < 1:
        raise ConversionError(f"{text!r} is no number of tokens; write it as 32k or 32768")
    return int(found[1]) * (1024 if found[2] else 1)
