"""Sizes in which KV caches are allocated: read by the caches and by the model of memory alike. No MLX."""

from __future__ import annotations

TOKEN_STEP = 256
"""Columns of a KV cache are allocated in such steps, by mlx-lm's caches and by ours."""
EAGER_BYTES = 4 << 20
"""Arrays larger than this are moved a layer at a time: one graph would hold old and new of all layers at once."""


def allocated(num_tokens: int) -> int:
    """Columns that are allocated for so many tokens."""
    return -(-num_tokens // TOKEN_STEP) * TOKEN_STEP
