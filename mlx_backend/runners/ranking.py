"""A prompt's own log-probabilities: those of each token from the second on, and of the likely tokens beside it."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from mlx_backend.api.interface import TokenLogprobs
from mlx_backend.core.step import Chunk
from mlx_backend.sampling.logprobs import rank, read_prompt

_LOGITS_BYTES = 64 << 20
"""Bytes of a prompt's float32 logits at a time. A model computes the logits of all its input or of nothing."""


def compute(model: Any, chunk: Chunk, caches: list[Any], num_top: int, vocab_size: int) -> tuple[TokenLogprobs, ...]:
    """Compute a chunk into its caches, in pieces; return the log-probabilities of the tokens that follow."""
    token_ids = chunk.token_ids if chunk.next_id is None else (*chunk.token_ids, chunk.next_id)
    piece = max(1, _LOGITS_BYTES // (4 * vocab_size))
    noted: list[TokenLogprobs] = []
    for start in range(0, chunk.num_tokens, piece):
        end = min(start + piece, chunk.num_tokens)
        logits = model(mx.array(token_ids[start:end])[None], cache=caches)[0]
        following = mx.array(token_ids[start + 1 : end + 1])
        ranked = rank(logits.astype(mx.float32), following, num_top)
        mx.eval(*ranked, [cache.state for cache in caches])  # what was ranked is read: the logits are released
        noted += read_prompt(ranked)
    return tuple(noted)
