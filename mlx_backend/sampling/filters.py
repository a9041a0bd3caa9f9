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
    # summed up, the mass may round to 1 before the last token
    num_kept = mx.sum(((mass_before < top_p) | (top_p >= 1)) & (ranked > _NEVER), axis=-1, keepdims=True)
    threshold = mx.take_along_axis(ranked, mx.maximum(num_kept - 1, 0), axis=-1)
    return mx.where(logits < threshold, _NEVER, logits)


def filter_min_p(logits: mx.array, min_p: mx.array) -> mx.array:
    """Keep tokens at least `min_p` times as likely as the likeliest. min_p: float32 [rows, 1] in [0, 1].

    Nguyen et al. 2024, arXiv 2407.01082.
    """
    threshold = mx.max(logits, axis=-1, keepdims=True) + mx.log(min_p)
    return mx.where(logits < threshold, _NEVER, logits)


def filter_top_n_sigma(logits: mx.array, n: mx.array) -> mx.array:
    """Keep tokens whose logit is within `n` standard deviations of the largest. n: float32 [rows, 1], 0: all.

    The deviation is of the logits not yet filtered. Whatever the temperature, the same tokens are kept, so long as
    this comes first. Tang et al. 2024, arXiv 2411.07641.
    """
    is_left = logits > _NEVER
    num_left = mx.sum(is_left, axis=-1, keepdims=True)
    mean = mx.sum(mx.where(is_left, logits, 0.0), axis=-1, keepdims=True) / num_left
    variance = mx.sum(mx.where(is_left, mx.square(logits - mean), 0.0), axis=-1, keepdims=True) / num_left
    threshold = mx.max(logits, axis=-1, keepdims=True) - n * mx.sqrt(variance)
    return mx.where((logits < threshold) & (n > 0), _NEVER, logits)


def filter_typical_p(logits: mx.array, typical_p: mx.array) -> mx.array:
    """Keep the tokens whose surprise is nearest to the entropy, the fewest whose probability reaches `typical_p`.

    typical_p: float32 [rows, 1] in (0, 1], 1: all. Tokens as typical as the last one kept are kept too.
    Locally typical sampling: Meister et al. 2022, arXiv 2202.00666.
    """
    logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    probabilities = mx.exp(logprobs)
    surprise = mx.where(logits > _NEVER, -logprobs, 0.0)
    entropy = mx.sum(probabilities * surprise, axis=-1, keepdims=True)
    oddness = mx.where(logits > _NEVER, mx.abs(surprise - entropy), -_NEVER)
    order = mx.argsort(oddness, axis=-1)
    ranked = mx.take_along_axis(probabilities, order, axis=-1)
    mass_before = mx.cumsum(ranked, axis=-1) - ranked
    num_kept = mx.sum(mass_before < typical_p, axis=-1, keepdims=True)
    last = mx.take_along_axis(order, mx.maximum(num_kept - 1, 0), axis=-1)
    is_odd = oddness > mx.take_along_axis(oddness, last, axis=-1)
    return mx.where(is_odd & (typical_p < 1), _NEVER, logits)


def filter_xtc(
    logits: mx.array, threshold: mx.array, is_active: mx.array, kept: tuple[mx.array, mx.array] | None
) -> mx.array:
    """Of the tokens as likely as `threshold`, take away all but the least likely, in the rows where `is_active`.

    threshold: float32 [rows, 1]; above 0.5 it takes nothing. is_active: bool [rows, 1]. kept: rows and token ids,
    int [k] each, that are not taken. Exclude Top Choices, by p-e-w, as in llama.cpp: the threshold is met by
    reaching it. Tokens as likely as the least likely stay with it.
    """
    is_likely = (mx.softmax(logits, axis=-1, precise=True) >= threshold) & (logits > _NEVER)
    least = mx.min(mx.where(is_likely, logits, -_NEVER), axis=-1, keepdims=True)
    is_taken = (logits > least) & is_active
    if kept is not None:
        is_taken[kept] = False
    return mx.where(is_taken, _NEVER, logits)


def draw(logits: mx.array, keys: mx.array) -> mx.array:
    """One token per row, in proportion to exp(logits). keys: uint32 [rows, 2], one per row and step.

    Adding Gumbel noise and taking the largest samples the softmax. A row's noise depends on its key alone,
    so the same seed draws the same token whatever else is in the batch.
    """
    vocab = logits.shape[-1]
    noise = mx.vmap(lambda key: mx.random.gumbel(shape=(vocab,), key=key))(keys)
    return mx.argmax(logits + noise, axis=-1)
