"""Tokens that a row may not draw: barred by its grammar or its request, or ending it too early."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import mlx.core as mx

from mlx_backend.core.row import Row

_NEVER = -float("inf")


class TokenMasks:
    """Masks for some rows of a batch, rebuilt when the rows change."""

    def __init__(self, rows: Sequence[Row], vocab_size: int) -> None:
        self._rows = list(rows)
        self._allowed = _allowed(rows, vocab_size)
        self._ends = row_tokens([row.stop_ids if row.is_short else () for row in rows], vocab_size)

    def apply(self, logits: mx.array) -> mx.array:
        """Set barred tokens to -inf. logits: float32 [batch rows, vocab]."""
        if self._allowed is not None:
            batch_rows, allowed = self._allowed
            logits = mx.array(logits)
            logits[batch_rows] = mx.where(allowed, logits[batch_rows], _NEVER)
        if self._ends is not None and any(row.is_short for row in self._rows):
            batch_rows, ids = self._ends
            bars = mx.array([_NEVER if row.is_short else 0.0 for row in self._rows])
            barred = logits.at[batch_rows, ids].add(bars[batch_rows])
            # if nothing but the end is left, by a grammar, for example, the row ends
            logits = mx.where(mx.max(barred, axis=-1, keepdims=True) > _NEVER, barred, logits)
        return logits


def mask_logits(logits: mx.array, masks: Sequence[tuple[int, bytes]]) -> mx.array:
    """Set tokens that a row may not draw to -inf, those past its bits included. logits: float32 [rows, vocab].

    `masks`: (place of a row, one bit per token), as `grammar.read_masks` returns them.
    """
    if not masks:
        return logits
    vocab = logits.shape[-1]
    num_words = (vocab + 31) // 32
    padded = b"".join(bits[: 4 * num_words].ljust(4 * num_words, b"\0") for _, bits in masks)
    words = mx.array(memoryview(padded).cast("I")).reshape(len(masks), num_words)
    tokens = mx.arange(vocab, dtype=mx.uint32)
    is_allowed = (words[:, tokens // 32] >> (tokens % 32)) & 1
    places = mx.array([place for place, _ in masks])
    masked = mx.array(logits)
    masked[places] = mx.where(is_allowed.astype(mx.bool_), logits[places], -float("inf"))
    return masked


def row_tokens(ids_of_rows: Sequence[Collection[int]], vocab_size: int) -> tuple[mx.array, mx.array] | None:
    """Return all (row, token id) as two int32 arrays; None for none. Skips the tokenizer's ids that the model lacks."""
    pairs = [(row, token) for row, ids in enumerate(ids_of_rows) for token in sorted(ids) if token < vocab_size]
    if not pairs:
        return None
    return mx.array([row for row, _ in pairs], dtype=mx.int32), mx.array([token for _, token in pairs], dtype=mx.int32)


def _allowed(rows: Sequence[Row], vocab_size: int) -> tuple[mx.array, mx.array] | None:
    """Return (the rows that allow only some tokens: int32 [k], the tokens each allows: bool [k, vocab])."""
    asking = [i for i, row in enumerate(rows) if row.sampling.allowed_token_ids]
    if not asking:
        return None
    allowed = mx.zeros((len(asking), vocab_size), dtype=mx.bool_)
    tokens = row_tokens([rows[i].sampling.allowed_token_ids for i in asking], vocab_size)
    if tokens is not None:
        allowed[tokens] = True
    return mx.array(asking, dtype=mx.int32), allowed
