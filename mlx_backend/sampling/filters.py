"""Filters: pure functions of logits [rows, vocab] and one parameter per row [rows, 1].

A filtered token's logit becomes -inf. Neutral parameters leave a row unchanged, so that rows with and without a filter
share one call.
"""

from __future__ import annotations

import mlx.core as mx

from mlx_backend.sampling.selection import (
    GROUP,
    LOWEST_PROBABILITY,
    PROBABILITY_BITS,
    candidates,
    find_threshold,
    masses,
    order_keys,
    probability_keys,
    share_of,
)

MOST_FEW = 256
"""Largest top_k of `filter_few`, for any vocabulary."""

_NEVER = -float("inf")
_INFINITY = 0x7F800000
"""The bits of a float32 infinity."""
_FEW_SCALE = 1 << 23
"""Weight of the likeliest token in `filter_few`: MOST_FEW of them fit into 31 bits."""


def most_few(vocab: int) -> int:
    """Return the top_k up to which sorting the candidates costs less than finding a threshold among all tokens."""
    return min(MOST_FEW, max(32, vocab // (2 * GROUP)))


def filter_few(logits: mx.array, top_k: mx.array, top_p: mx.array | None, most: int) -> mx.array:
    """Keep the `top_k` most likely tokens, then of these the fewest that reach the probability `top_p`.

    top_k: int32 [rows, 1]; rows in which it is above `most`, at most MOST_FEW, stay unchanged. top_p: float32 [rows, 1]
    in (0, 1]; None: 1 in every row. Tokens as likely as the last one kept are kept too, and count among those that
    top_k left. Only the `most` largest are sorted, and summed as integers, so that `most`, which depends on the other
    rows, does not affect the result. Nucleus sampling: Holtzman et al. 2020, arXiv 1904.09751.
    """
    few, _ = candidates(logits, most)
    ranked = mx.sort(few, axis=-1)[:, : -most - 1 : -1]
    threshold = mx.take_along_axis(ranked, mx.minimum(top_k, most) - 1, axis=-1)
    if top_p is not None:
        is_left = ranked >= threshold
        weights = (mx.exp(ranked - ranked[:, :1]) * float(_FEW_SCALE) + 0.5).astype(mx.uint32)
        weights = mx.where(is_left, weights, 0)
        mass_before = mx.cumsum(weights, axis=-1) - weights
        # as likely as the last of them, but not among `most`
        num_more = mx.sum(logits >= threshold, axis=-1, keepdims=True) - mx.sum(is_left, axis=-1, keepdims=True)
        last = mx.take_along_axis(weights, mx.minimum(top_k, most) - 1, axis=-1)
        total = mx.sum(weights, axis=-1, keepdims=True) + num_more.astype(mx.uint64) * last
        is_kept = ((mass_before < share_of(total, top_p)) | (top_p >= 1)) & is_left
        num_kept = mx.sum(is_kept, axis=-1, keepdims=True)
        threshold = mx.take_along_axis(ranked, mx.maximum(num_kept - 1, 0), axis=-1)
    return mx.where((logits < threshold) & (top_k <= most), _NEVER, logits)


def filter_top_k(logits: mx.array, top_k: mx.array) -> mx.array:
    """Keep the `top_k` most likely tokens, and those as likely as the last of them. top_k: int32 [rows, 1] up to vocab.

    For a `top_k` of any size; up to MOST_FEW, `filter_few` is faster.
    """
    keys = order_keys(logits.astype(mx.float32))
    return mx.where(keys < find_threshold(keys, None, top_k), _NEVER, logits)


def filter_top_p(logits: mx.array, top_p: mx.array) -> mx.array:
    """Keep a token if those strictly likelier than it have less than `top_p` of the probability.

    These are the fewest likeliest tokens that reach `top_p`, and those as likely as the last of them. top_p: float32
    [rows, 1] in (0, 1], 1: all.
    """
    probabilities = mx.softmax(logits.astype(mx.float32), axis=-1, precise=True)
    keys, weights = probability_keys(probabilities), masses(probabilities)
    target = share_of(mx.sum(weights, axis=-1, keepdims=True), top_p)
    threshold = find_threshold(keys, weights, target, lowest=LOWEST_PROBABILITY, num_bits=PROBABILITY_BITS)
    return mx.where((keys < threshold) & (top_p < 1), _NEVER, logits)


def filter_min_p(logits: mx.array, min_p: mx.array) -> mx.array:
    """Keep tokens at least `min_p` times as likely as the likeliest. min_p: float32 [rows, 1] in [0, 1].

    Nguyen et al. 2024, arXiv 2407.01082.
    """
    threshold = mx.max(logits, axis=-1, keepdims=True) + mx.log(min_p)
    return mx.where(logits < threshold, _NEVER, logits)


def filter_top_n_sigma(logits: mx.array, n: mx.array) -> mx.array:
    """Keep tokens with a logit within `n` standard deviations of the largest. n: float32 [rows, 1], 0: all.

    The deviation is that of the unfiltered logits. If this filter comes first, the same tokens are kept at any
    temperature. Tang et al. 2024, arXiv 2411.07641.
    """
    is_left = logits > _NEVER
    num_left = mx.sum(is_left, axis=-1, keepdims=True)
    mean = mx.sum(mx.where(is_left, logits, 0.0), axis=-1, keepdims=True) / num_left
    variance = mx.sum(mx.where(is_left, mx.square(logits - mean), 0.0), axis=-1, keepdims=True) / num_left
    threshold = mx.max(logits, axis=-1, keepdims=True) - n * mx.sqrt(variance)
    return mx.where((logits < threshold) & (n > 0), _NEVER, logits)


def filter_typical_p(logits: mx.array, typical_p: mx.array) -> mx.array:
    """Keep the tokens with a surprise nearest to the entropy, the fewest that reach the probability `typical_p`.

    typical_p: float32 [rows, 1] in (0, 1], 1: all. Tokens as typical as the last one kept are kept too.
    Locally typical sampling: Meister et al. 2022, arXiv 2202.00666.
    """
    logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    probabilities = mx.exp(logprobs)
    surprise = mx.where(logits > _NEVER, -logprobs, 0.0)
    entropy = mx.sum(probabilities * surprise, axis=-1, keepdims=True)
    oddness = mx.where(logits > _NEVER, mx.abs(surprise - entropy), -_NEVER)
    weights = masses(probabilities)
    keys = _INFINITY - probability_keys(oddness)
    target = share_of(mx.sum(weights, axis=-1, keepdims=True), typical_p)
    threshold = find_threshold(keys, weights, target, num_bits=31)
    return mx.where((keys < threshold) & (typical_p < 1), _NEVER, logits)


def filter_xtc(
    logits: mx.array, threshold: mx.array, is_active: mx.array, kept: tuple[mx.array, mx.array] | None
) -> mx.array:
    """Remove all but the least likely of the tokens as likely as `threshold`, in the rows with `is_active`.

    threshold: float32 [rows, 1]; above 0.5 it removes nothing. is_active: bool [rows, 1]. kept: rows and token ids, int
    [k] each, that are not removed. Exclude Top Choices, by p-e-w, as in llama.cpp: a probability equal to the threshold
    reaches it. Tokens as likely as the least likely stay with it.
    """
    is_likely = (mx.softmax(logits, axis=-1, precise=True) >= threshold) & (logits > _NEVER)
    least = mx.min(mx.where(is_likely, logits, -_NEVER), axis=-1, keepdims=True)
    is_taken = (logits > least) & is_active
    if kept is not None:
        is_taken[kept] = False
    return mx.where(is_taken, _NEVER, logits)


def draw(logits: mx.array, keys: mx.array) -> mx.array:
    """Draw one token per row, in proportion to exp(logits). keys: uint32 [rows, 2], one per row and step.

    Adding Gumbel noise and taking the largest samples the softmax. A row's noise depends on its key alone, so the same
    seed draws the same token in any batch.
    """
    vocab = logits.shape[-1]
    noise = mx.vmap(lambda key: mx.random.gumbel(shape=(vocab,), key=key))(keys)
    return mx.argmax(logits + noise, axis=-1)
