"""Sizes in which KV caches are allocated: read by the caches and by the model of memory alike. No MLX."""

from __future__ import annotations

TOKEN_STEP = 256
"""Columns of a KV cache are allocated in such steps, by mlx-lm's caches and by ours."""
SOON_TOKENS = 256
"""Room is kept for so many tokens ahead of every sequence that decodes."""
EAGER_BYTES = 4 << 20
"""Arrays larger than this are moved a layer at a time: one graph would hold old and new of all layers at once."""
SLACK_BYTES = 32 << 20
"""Spare rows may cost so much per layer: less copying as rows join, bounded where rows are long."""


def allocated(num_tokens: int) -> int:
    """Columns that are allocated for so many tokens."""
    return -(-num_tokens // TOKEN_STEP) * TOKEN_STEP


def tokens_soon(num_prompt_tokens: int, num_written: int, most: int) -> int:
    """Return how many tokens a sequence may hold within its next steps: at least `SOON_TOKENS` more, `most` at most.

    In steps, so that the number seldom changes. A batch holds no more columns than its longest row needs soon.
    """
    return min(most, num_prompt_tokens + (num_written // SOON_TOKENS + 2) * SOON_TOKENS)


def capacity_for(num_rows: int, num_tokens: int, row_token_bytes: int) -> tuple[int, int]:
    """(rows, columns) that a batch's cache allocates: rows up to a power of two while that is cheap.

    `row_token_bytes`: of one column of one row.
    """
    columns = max(TOKEN_STEP, allocated(num_tokens))
    spare = (1 << (num_rows - 1).bit_length()) - num_rows
    affordable = SLACK_BYTES // max(columns * row_token_bytes, 1)
    return num_rows + min(spare, affordable), columns
