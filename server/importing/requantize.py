"""Requantize values in MLX's affine format: groups of 32 between their smallest and largest value.

The codes are chosen for the rounded scales that are written.
"""

from __future__ import annotations

import numpy as np

from server.importing.affine import GROUP_SIZE, Floats, Groups
from server.importing.dtypes import DType

BITS = (2, 3, 4, 5, 6, 8)


def quantize(values: Floats, bits: int, dtype: DType) -> Groups:
    """Return the codes of rows of whole groups."""
    groups = values.reshape(values.shape[0], -1, GROUP_SIZE)
    most = (1 << bits) - 1
    low, high = _extreme(np.minimum, groups), _extreme(np.maximum, groups)
    scales = dtype.rounded(np.asarray((high - low) / most, np.float32))
    biases = dtype.rounded(low)
    places = groups - biases[..., None]
    places /= np.where(scales > 0, scales, 1)[..., None]
    np.rint(places, out=places)
    np.clip(places, 0, most, out=places)
    return Groups(places.astype(np.uint8).reshape(values.shape), scales, biases)


def _extreme(choose: np.ufunc, groups: Floats) -> Floats:
    """Return the least or largest value of each group, by halving: numpy is slow on short axes."""
    while groups.shape[-1] > 1:
        half = groups.shape[-1] // 2
        groups = choose(groups[..., :half], groups[..., half:])
    return groups[..., 0]
