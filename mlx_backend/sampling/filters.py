"""Filters: pure functions of logits [rows, vocab] and one parameter per row [rows, 1].

A filtered token's logit becomes -inf. Neutral parameters leave a row as it is, so that rows with and
without a filter share one call.
"""

from __future__ import annotations

import mlx.core as mx

_NEVER = -float("inf")


def filter_top_k_top_p(logits: mx.array, top_k: mx.array, top_p: mx.array) -> mx.array:
    """Keep the `top_k` most likely tokens, then of these the fewest whose probability reaches `top_p`.

    top_k: int32 [rows, 1], at least 1. top_p: float32 [rows, 1] in (0, 1]. Tokens as likely as the last
    one kept are kept too. Nucleus sampling: Holtzman et al. 2020, arXiv 1904.09751.
    """
    vocab = logits.shape[-1]
    ranked = mx.sort(logits, axis=-1)[:, ::-1]
    ranked = mx.where(mx.arange(vocab)[None] < top_k, ranked, _NEVER)
    probabilities = mx.softmax(ranked, axis=-1, precise=True)
    mass_before = mx.cumsum(probabilities, axis=-1) - probabilities
    num_kept = mx.sum((mass_before < top_p) & (ranked > _NEVER), axis=-1, keepdims=True)
    threshold = mx.take_along_axis(ranked, mx.maximum(num_kept - 1, 0), axis=-1)
    return mx.where(logits < threshold, _NEVER, logits)


def filter_min_p(logits: mx.array, min_p: mx.array) -> mx.array:
    """Keep tokens at least `min_p` times as likely as the likeliest. min_p: float32 [rows, 1] in [0, 1].

    Nguyen et al. 2024, arXiv 2407.01082.
    """
    threshold = mx.max(logits, axis=-1, keepdims=True) + mx.log(min_p)
    return mx.where(logits < threshold, _NEVER, logits)


def draw(logits: mx.array, keys: mx.array) -> mx.array:
    """One token per row, in proportion to exp(logits). keys: uint32 [rows, 2], one per row and step.

    Adding Gumbel noise and taking the largest samples the softmax. A row's noise depends on its key alone,
    so the same seed draws the same token whatever else is in the batch.
    """
    vocab = logits.shape[-1]
    noise = mx.vmap(lambda key: mx.random.gumbel(shape=(vocab,), key=key))(keys)
    return mx.argmax(logits + noise, axis=-1)
