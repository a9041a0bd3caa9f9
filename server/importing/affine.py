"""Copy the codes of GGUF's affine types into MLX's format: value = scale * code + bias, in groups of 32.

The codes are the file's own, so only the scales are rounded. Works on rows of bytes, independent of files and MLX.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

GROUP_SIZE = 32
Array = NDArray[Any]
Bytes = Array
"""Array of uint8."""
Floats = Array
"""Array of float32."""


@dataclass(frozen=True, slots=True)
class Groups:
    """Rows of codes (one per byte), with a scale and a bias for each group of 32."""

    codes: Bytes
    scales: Floats
    biases: Floats


def is_affine(name: str) -> bool:
    """Return whether the type of this name is affine in groups of 32."""
    return name in _READERS


def bits_of(name: str) -> int:
    """Return the bits per code of an affine type."""
    return _READERS[name][0]


def read_groups(name: str, rows: Bytes) -> Groups:
    """Return the codes of rows of whole blocks of an affine type. `rows`: (rows, bytes per row)."""
    _, block_bytes, read = _READERS[name]
    codes, scales, biases = read(np.ascontiguousarray(rows).reshape(-1, block_bytes))
    num_rows = rows.shape[0]
    return Groups(codes.reshape(num_rows, -1), scales.reshape(num_rows, -1), biases.reshape(num_rows, -1))


def pack(codes: Bytes, bits: int) -> NDArray[np.uint32]:
    """Pack codes as MLX does: a stream of bits, lowest first, in 32-bit words. Rows are whole groups of 32."""
    num_rows = codes.shape[0]
    if bits == 8:
        return np.ascontiguousarray(codes).view(np.uint32)
    if bits == 4:
        return np.ascontiguousarray(codes[:, ::2] | (codes[:, 1::2] << 4)).view(np.uint32)
    eights = codes.reshape(num_rows, -1, 8)
    words = np.zeros(eights.shape[:2], np.uint64)
    for place in range(8):
        words |= eights[:, :, place].astype(np.uint64) << np.uint64(bits * place)
    as_bytes = words.astype("<u8").view(np.uint8).reshape(num_rows, -1, 8)[:, :, :bits]
    return np.ascontiguousarray(as_bytes).reshape(num_rows, -1).view(np.uint32)


def values_of(groups: Groups) -> Floats:
    """Return the values that the codes represent."""
    codes = groups.codes.reshape(*groups.scales.shape, GROUP_SIZE)
    values = codes * groups.scales[..., None] + groups.biases[..., None]
    return values.reshape(groups.codes.shape).astype(np.float32)


def half(blocks: Bytes, at: int) -> Floats:
    """Return the float16 at one position of each block."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float32)


def nibbles(packed: Bytes) -> Bytes:
    """Return the low halves of bytes, then their high halves."""
    return np.concatenate([packed & 15, packed >> 4], axis=1)


def scales_and_minima(packed: Bytes) -> tuple[Bytes, Bytes]:
    """Unpack eight 6-bit scales and eight 6-bit minima from 12 bytes, as Q4_K and Q5_K pack them."""
    first, second, third = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate([first & 63, (third & 15) | ((first >> 6) << 4)], axis=1)
    minima = np.concatenate([second & 63, (third >> 4) | ((second >> 6) << 4)], axis=1)
    return scales, minima


_Read = tuple[Bytes, Array, Array]


def _four(blocks: Bytes) -> _Read:
    scale = half(blocks, 0)
    return nibbles(blocks[:, 2:18]), scale, -8 * scale


def _four_with_minimum(blocks: Bytes) -> _Read:
    return nibbles(blocks[:, 4:20]), half(blocks, 0), half(blocks, 2)


def _five(blocks: Bytes) -> _Read:
    scale = half(blocks, 0)
    return nibbles(blocks[:, 6:22]) | _fifth_bits(blocks[:, 2:6]), scale, -16 * scale


def _five_with_minimum(blocks: Bytes) -> _Read:
    return nibbles(blocks[:, 8:24]) | _fifth_bits(blocks[:, 4:8]), half(blocks, 0), half(blocks, 2)


def _fifth_bits(packed: Bytes) -> Bytes:
    return np.unpackbits(np.ascontiguousarray(packed), axis=1, bitorder="little") << 4


def _eight(blocks: Bytes) -> _Read:
    scale = half(blocks, 0)
    return blocks[:, 2:34] ^ 128, scale, -128 * scale  # signed bytes, 128 added


def _four_k(blocks: Bytes) -> _Read:
    return _fours_of(blocks[:, 16:144]).reshape(-1, GROUP_SIZE), *_k_scales(blocks)


def _five_k(blocks: Bytes) -> _Read:
    shifts = np.arange(8, dtype=np.uint8)[None, :, None]
    fifths = ((blocks[:, None, 16:48] >> shifts) & 1) << 4
    return (_fours_of(blocks[:, 48:176]) | fifths).reshape(-1, GROUP_SIZE), *_k_scales(blocks)


def _fours_of(packed: Bytes) -> Bytes:
    """Return the eight groups of a block: each 32 bytes hold two, one in the low and one in the high halves."""
    quarters = packed.reshape(-1, 4, GROUP_SIZE)
    return np.stack([quarters & 15, quarters >> 4], axis=2).reshape(-1, 8, GROUP_SIZE)


def _k_scales(blocks: Bytes) -> tuple[Floats, Floats]:
    scales, minima = scales_and_minima(blocks[:, 4:16])
    return half(blocks, 0) * scales, -(half(blocks, 2) * minima)


_READERS: dict[str, tuple[int, int, Callable[[Bytes], _Read]]] = {
    "Q4_0": (4, 18, _four),
    "Q4_1": (4, 20, _four_with_minimum),
    "Q5_0": (5, 22, _five),
    "Q5_1": (5, 24, _five_with_minimum),
    "Q8_0": (8, 34, _eight),
    "Q4_K": (4, 144, _four_k),
    "Q5_K": (5, 176, _five_k),
}
"""Bits, bytes per block and reader of blocks, by type."""
