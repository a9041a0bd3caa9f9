"""Sizes in which KV caches are allocated, shared by the caches and the memory model. No MLX."""

from __future__ import annotations

TOKEN_STEP = 256
"""Step in which the columns of a KV cache are allocated, by mlx-lm's caches and by ours."""
SOON_TOKENS = 256
"""Tokens for which room is kept ahead of every decoding sequence."""
EAGER_BYTES = 4 << 20
"""Arrays larger than this are moved one layer at a time: one graph would hold old and new arrays of all layers at once.
"""

DRAFT_CHUNK_TOKENS = 512
"""Tokens of a row that a draft model prefills at once, at most."""
_DRAFTED_TOKENS = 64
"""Tokens of a step with drafts, all rows together, unless two per row are more."""


def allocated(num_tokens: int) -> int:
    """Return the columns allocated for this many tokens."""
    return -(-num_tokens // TOKEN_STEP) * TOKEN_STEP


def most_step_tokens(num_rows: int, max_drafts: int) -> int:
    """Return the most tokens of a decode step in which every row counts as many as the row with the most drafts."""
    return min(num_rows * (1 + max_drafts), max(_DRAFTED_TOKENS, 2 * num_rows))


def tokens_soon(num_prompt_tokens: int, num_written: int, most: int) -> int:
    """Return how many tokens a sequence may hold within its next steps: at least `SOON_TOKENS` more, `most` at most.

    The number moves in steps, so it seldom changes. A batch holds no more columns than its longest row needs soon.
    """
    return min(most, num_prompt_tokens + (num_written // SOON_TOKENS + 2) * SOON_TOKENS)
