"""The sizes of prefill chunks: a short ladder, so that shapes repeat. Pure; no MLX.

Powers of two and the sizes half-way between them: 1, 2, 3, 4, 6, 8, 12, 16, ... A device that prepares kernels for
every shape (CUDA) prepares few, and one that keeps freed buffers by size (Metal) finds ones that fit.
"""

from __future__ import annotations

_LEAST_PADDED = 16
"""Fewer tokens cost no less: the weights are read in any case."""


def round_down(num_tokens: int) -> int:
    """Return the largest size that is at most `num_tokens`, which is at least 1."""
    power = 1 << num_tokens.bit_length() - 1
    between = power + power // 2
    return between if num_tokens >= between else power


def round_up(num_tokens: int) -> int:
    """Return the smallest size that is at least `num_tokens`, which is at least 1."""
    below = round_down(num_tokens)
    return below if below == num_tokens else next_size(below)


def next_size(size: int) -> int:
    """Return the next size on the ladder."""
    power = 1 << size.bit_length() - 1
    return power + power // 2 if size == power > 1 else 2 * power


def padded(num_tokens: int, most: int) -> int:
    """Return the tokens computed for a padded chunk of `num_tokens`: a size, or `most`, the upper bound."""
    return min(max(_LEAST_PADDED, round_up(num_tokens)), most)


def padded_sizes(most: int) -> list[int]:
    """Return all results of `padded` for chunks of at most `most` tokens, ascending."""
    sizes, size = [], _LEAST_PADDED
    while size < most:
        sizes.append(size)
        size = next_size(size)
    return [*sizes, most]


def most_padding(most: int) -> int:
    """Return the most tokens by which a chunk of at most `most` tokens is padded."""
    sizes = padded_sizes(most)
    return max(size - before - 1 for before, size in zip([0, *sizes], sizes, strict=False))
