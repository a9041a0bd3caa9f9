"""Selection without sorting the vocabulary: the threshold that a share of the probability reaches, and the largest.

A threshold is found by bisection over keys: unsigned integers in the order of the numbers that they represent. Sums of
rounded numbers depend on the order of summation, and so on the device and on the shape of the batch. So probabilities
are summed as integers (`masses`): their sums are exact, and the threshold equals that of a sorted list, to the bit,
with any number of bits per pass.
"""

from __future__ import annotations

import mlx.core as mx

GROUP = 64
"""Size of a group of tokens of which `candidates` takes all or none."""

_MASS_BITS = 31
"""A probability of 1 is 2**31, so that the masses of a row, with probabilities that sum to 1, fit into 32 bits.
Probabilities below 2**-32 have no mass: of 262,144 tokens at most 6e-5 together. Masses of 64 bits would lose nothing,
but take twice as long."""
_SHARE_BITS = 24
"""Bits of top_p as a fixed-point number: as exact as a float32 from 0.5 up."""
_SHARE_MASK = (1 << _SHARE_BITS) - 1
_FEW_ELEMENTS = 1 << 18
"""Tokens, all rows together, up to which a pass on a GPU takes about as long as its launches."""
_CACHED_ELEMENTS = 1 << 18
"""Tokens of rows that are searched together on a CPU, so that its caches hold most of the data of a pass: 8 rows of
128,256 took 206 ms together and 151 by twos. On a GPU every block would add its launches."""


def masses(probabilities: mx.array) -> mx.array:
    """Convert probabilities, float32 [rows, vocab], to units of 2**-31, uint32; a row's sum is about 2**31."""
    return (probabilities * float(1 << _MASS_BITS) + 0.5).astype(mx.uint32)


def share_of(total: mx.array, share: mx.array) -> mx.array:
    """Return the least mass that is at least `share` of `total`, uint64 [rows, 1]. share: float32 in (0, 1]."""
    numerator = mx.maximum(mx.round(share * float(1 << _SHARE_BITS)), 1.0).astype(mx.uint64)
    total = total.astype(mx.uint64)
    high, low = total >> _SHARE_BITS, total & _SHARE_MASK  # the product could exceed 64 bits
    return high * numerator + ((low * numerator + _SHARE_MASK) >> _SHARE_BITS)


def order_keys(values: mx.array) -> mx.array:
    """Return the keys of float32 values, -inf and zeros of either sign included. NaN is not supported."""
    bits = (values + 0.0).view(mx.uint32)  # -0.0 becomes 0.0
    return mx.where(bits >> 31, ~bits, bits | (1 << 31))


LOWEST_PROBABILITY, PROBABILITY_BITS = (127 - _MASS_BITS - 1) << 23, _MASS_BITS.bit_length() + 23
"""The key of 2**-32, the least probability that has a mass, and the bits for all keys from there to 1: 32 exponents."""


def probability_keys(probabilities: mx.array) -> mx.array:
    """Return the keys of non-negative numbers: the bits of a float32 are in order already."""
    return probabilities.view(mx.uint32)


def find_threshold(
    keys: mx.array,
    weights: mx.array | None,
    target: mx.array,
    *,
    lowest: int = 0,
    num_bits: int = 32,
    bits_per_pass: int | None = None,
) -> mx.array:
    """Return the largest key, uint32 [rows, 1], such that the tokens from there up weigh at least `target`.

    keys: uint32 [rows, vocab]. weights: uint32 [rows, vocab] with sums that fit into 32 bits; None: every token weighs
    1. target: [rows, 1], at least 1 and at most the weight of all from `lowest` up. The result is within `num_bits` of
    `lowest`. A token is at or above the threshold if, and only if, those strictly above it weigh less than `target`.

    Cost: a pass tries 2**bits - 1 thresholds at once, so it takes the same number of launches for any number of bits,
    and reads and writes 8 bytes per token for each threshold, plus 8 for key and weight. On a CPU these bytes determine
    the time, and one bit per pass is fastest (28 passes over one row of 128,256: 1 bit 6.7 ms, 2 bits 12, 4 bits 41;
    sorting took 13). On a GPU a pass is 5 launches: add, weigh, sum, choose, maximum. Top-p of 28 bits takes 140
    launches and 448 bytes per token with 1 bit per pass, 70 and 448 with 2, 50 and 640 with 3, 35 and 896 with 4. So it
    is 3 if, with a row or two, launches dominate, and 2 for more rows. Counted from MLX's kernels; not measured on a
    Mac.
    """
    on_gpu = _is_on_gpu()
    step = bits_per_pass or choose_bits(keys.size, on_gpu=on_gpu)
    target = target.astype(mx.int32 if weights is None else mx.uint32)
    rows, block = len(keys), len(keys) if on_gpu else max(1, _CACHED_ELEMENTS // keys.shape[-1])
    found = []
    for i in range(0, rows, block):
        here = slice(i, i + block)
        found.append(
            _search(keys[here], None if weights is None else weights[here], target[here], lowest, num_bits, step)
        )
    return found[0] if len(found) == 1 else mx.concatenate(found, axis=0)


def choose_bits(num_elements: int, *, on_gpu: bool) -> int:
    """Return the bits that a pass over this many keys finds."""
    if not on_gpu:
        return 1
    return 3 if num_elements <= _FEW_ELEMENTS else 2


def _search(
    keys: mx.array, weights: mx.array | None, target: mx.array, lowest: int, num_bits: int, step: int
) -> mx.array:
    """Find the thresholds of rows that are searched together, `step` bits per pass."""
    weigh, choose = (_weigh_compiled, _choose_compiled) if _is_on_gpu() else (_weigh, _choose)
    keys, weights = keys[:, None], None if weights is None else weights[:, None]
    threshold = mx.full(target.shape, lowest, dtype=mx.uint32)
    while num_bits > 0:
        step = min(step, num_bits)
        num_bits -= step
        tried = threshold + mx.array([[digit << num_bits for digit in range(1, 1 << step)]], dtype=mx.uint32)
        weighed = keys >= tried[..., None] if weights is None else weigh(keys, weights, tried[..., None])
        threshold = choose(mx.sum(weighed, axis=-1), target, tried, threshold)
        if step > 1:
            threshold = mx.max(threshold, axis=-1, keepdims=True)
    return threshold


def _weigh(keys: mx.array, weights: mx.array, tried: mx.array) -> mx.array:
    """Return the weights of the keys from `tried` up, 0 for others. A product: `where` takes twice as long on a CPU."""
    return (keys >= tried) * weights


def _choose(held: mx.array, target: mx.array, tried: mx.array, threshold: mx.array) -> mx.array:
    return mx.where(held >= target, tried, threshold)


# One kernel instead of three and of two. On a CPU it gains nothing, and the first step would wait for a C++ compiler.
# Values that differ from pass to pass come in as arrays: a constant would compile a kernel for every pass.
_weigh_compiled, _choose_compiled = mx.compile(_weigh), mx.compile(_choose)


def _is_on_gpu() -> bool:
    return bool(mx.default_device().type == mx.DeviceType.gpu)


def candidates(values: mx.array, num: int, group: int = GROUP) -> tuple[mx.array, mx.array]:
    """Return values that include the `num` largest of each row, and their places: [rows, about num * group or more].

    The `num` groups of tokens with the largest maxima hold them: a value in any other group is at most as large as
    `num` values in those. Returns the whole row unless it is at least twice as long. values: float32 [rows, vocab].
    """
    rows, vocab = values.shape
    num_groups = vocab // group
    if 2 * num * group > vocab:
        return values, mx.broadcast_to(mx.arange(vocab, dtype=mx.uint32)[None], values.shape)
    # a group is every num_groups-th token; the remaining tokens are always taken
    maxima = mx.max(values[:, : num_groups * group].reshape(rows, group, num_groups), axis=1)
    chosen = mx.argpartition(-maxima, kth=num - 1, axis=-1)[:, None, :num]
    places = (chosen + mx.arange(0, num_groups * group, num_groups, dtype=mx.uint32)[None, :, None]).reshape(rows, -1)
    if num_groups * group < vocab:
        rest = mx.arange(num_groups * group, vocab, dtype=mx.uint32)
        places = mx.concatenate([places, mx.broadcast_to(rest[None], (rows, rest.size))], axis=-1)
    return mx.take_along_axis(values, places, axis=-1), places
