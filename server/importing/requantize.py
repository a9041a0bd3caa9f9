"""Quantize values anew, in MLX's affine format: groups of 32 between their smallest and largest value.

The codes are chosen for the scales as they are written, rounding and all.
"""

from __future__ import annotations

import numpy as np

from server.importing.affine import GROUP_SIZE, Floats, Groups
from server.importing.dtypes import DType

BITS = (2, 3, 4, 5, 6, 8)


def quantize(values: Floats, bits: int, dtype: DType) -> Groups:
    """Codes for rows of whole groups."""
    groups = values.reshape(values.shape[0], -1, GROUP_SIZE)
    most = (1 << bits) - 1
    low, high = groups.min(axis=2), groups.max(axis=2)
    scales = dtype.rounded((high - low) / most)
    biases = dtype.rounded(low)
    steps = np.where(scales > 0, scales, 1)[..., None]
    codes = np.clip(np.rint((groups - biases[..., None]) / steps), 0, most).astype(np.uint8)
    return Groups(codes.reshape(values.shape), scales, biases)
