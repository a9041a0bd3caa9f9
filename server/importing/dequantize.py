"""Read the values of GGUF's types as float32, to requantize those that MLX cannot hold.

Types that need large tables are read with the `gguf` package, if it is installed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from server.importing.affine import Bytes, Floats, half, is_affine, read_groups, values_of
from server.importing.gguf_types import NUMBERS
from server.importing.problems import CannotImport

PLAIN = {"F32": "<f4", "F16": "<f2", "F64": "<f8", "I8": "i1", "I16": "<i2", "I32": "<i4", "I64": "<i8"}
"""Types that numpy reads."""
_FOUR_BIT_VALUES = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)


def can_read(name: str) -> bool:
    """Return whether the values of a type can be read here."""
    return name in PLAIN or name == "BF16" or is_affine(name) or name in _READERS or _library_reads(name)


def values(name: str, rows: Bytes) -> Floats:
    """Return the values of rows of whole blocks; `rows`: (rows, bytes per row). Raises CannotImport."""
    rows = np.ascontiguousarray(rows)
    if name in PLAIN:
        return rows.view(PLAIN[name]).astype(np.float32)
    if name == "BF16":
        return (rows.view("<u2").astype(np.uint32) << 16).view(np.float32)
    if is_affine(name):
        return values_of(read_groups(name, rows))
    if name in _READERS:
        block_bytes, read = _READERS[name]
        return np.asarray(read(rows.reshape(-1, block_bytes)), np.float32).reshape(rows.shape[0], -1)
    return _by_library(name, rows)


def _two_k(blocks: Bytes) -> Any:
    packed = blocks[:, 16:80].reshape(-1, 2, 1, 32)
    codes = (packed >> np.array([0, 2, 4, 6], np.uint8)[:, None]) & 3
    scales = (half(blocks, 80) * (blocks[:, :16] & 15))[..., None]
    minima = (half(blocks, 82) * (blocks[:, :16] >> 4))[..., None]
    return scales * codes.reshape(-1, 16, 16) - minima


def _three_k(blocks: Bytes) -> Any:
    high, low, packed = blocks[:, None, :32], blocks[:, 32:96].reshape(-1, 2, 1, 32), blocks[:, 96:108]
    twos = ((low >> np.array([0, 2, 4, 6], np.uint8)[:, None]) & 3).reshape(-1, 8, 32)
    thirds = (high >> np.arange(8, dtype=np.uint8)[:, None]) & 1
    codes = (twos | (thirds << 2)).astype(np.int8) - 4
    fours = np.concatenate([packed[:, :8] & 15, packed[:, :8] >> 4], axis=1)
    tops = ((packed[:, None, 8:12] >> np.array([0, 2, 4, 6], np.uint8)[:, None]) & 3).reshape(-1, 16)
    scales = (fours | (tops << 4)).astype(np.int8) - 32
    return (half(blocks, 108) * scales)[..., None] * codes.reshape(-1, 16, 16)


def _six_k(blocks: Bytes) -> Any:
    low, high = blocks[:, :128].reshape(-1, 2, 64), blocks[:, 128:192].reshape(-1, 2, 1, 32)
    fours = np.concatenate([low & 15, low >> 4], axis=2).reshape(-1, 2, 4, 32)
    tops = (high >> np.array([0, 2, 4, 6], np.uint8)[:, None]) & 3
    codes = (fours | (tops << 4)).astype(np.int8) - 32
    scales = blocks[:, 192:208].view(np.int8)
    return (half(blocks, 208) * scales)[..., None] * codes.reshape(-1, 16, 16)


def _four_nonlinear(blocks: Bytes) -> Any:
    packed = blocks[:, 2:18]
    return half(blocks, 0) * _FOUR_BIT_VALUES[np.concatenate([packed & 15, packed >> 4], axis=1)]


def _four_nonlinear_large(blocks: Bytes) -> Any:
    tops = np.ascontiguousarray(blocks[:, 2:4]).view("<u2") >> np.arange(0, 16, 2, dtype=np.uint16)
    fours = np.stack([blocks[:, 4:8] & 15, blocks[:, 4:8] >> 4], axis=2).reshape(-1, 8)
    scales = (fours | ((tops & 3) << 4)).astype(np.int8) - 32
    packed = blocks[:, 8:136].reshape(-1, 8, 16)
    codes = _FOUR_BIT_VALUES[np.concatenate([packed & 15, packed >> 4], axis=2)]
    return (half(blocks, 0) * scales)[..., None] * codes


_READERS: dict[str, tuple[int, Callable[[Bytes], Any]]] = {
    "Q2_K": (84, _two_k),
    "Q3_K": (110, _three_k),
    "Q6_K": (210, _six_k),
    "IQ4_NL": (18, _four_nonlinear),
    "IQ4_XS": (136, _four_nonlinear_large),
}
"""Bytes per block and reader of blocks, by type."""


def _library_reads(name: str) -> bool:
    try:
        from gguf import quants
    except ImportError:
        return True  # assumed: `values` reports that the package is missing
    return any(kind.name == name for kind in quants._type_traits)


def _by_library(name: str, rows: Bytes) -> Floats:
    try:
        from gguf import GGMLQuantizationType, quants
    except ImportError:
        message = f"reading {name} needs the gguf package; install it: pip install gguf"
        raise CannotImport(message) from None
    return np.asarray(quants.dequantize(rows, GGMLQuantizationType(NUMBERS[name])), np.float32)
