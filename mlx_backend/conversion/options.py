"""Options for allocation: which formats a weight may have, what each takes, and what it loses. Pure; no MLX.

Where the model cannot be run, the loss of a format is the relative squared error of the weight, measured on a sample:
for inputs without a pattern, that is the relative squared error of the layer's output, and what layers add up to is
counted as their sum. A layer's routed experts count as one weight, since a token passes through a few of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod

from mlx_backend.conversion.kinds import kind_of
from mlx_backend.conversion.recipes import Candidate, raised
from mlx_backend.conversion.spec import Spec

SPECS = (Spec(2, 128), Spec(2), Spec(3), Spec(4), Spec(5), Spec(6), Spec(8))
"""Formats that allocation chooses from, and the weight as it is."""
_LEAST_BITS = {"routed experts": 2, "shared experts": 3, "MLP": 3}
_OTHERS_LEAST_BITS = 4
"""The least for other weights, where sensitivities were not measured: below, errors do not merely add up."""


def allowed(candidate: Candidate, *, is_measured: bool, most: Spec | None = None) -> tuple[Spec | None, ...]:
    """Return the formats that a weight may have, floors held; None among them: as it is.

    `most`: the format that it has in the source; more bits than that are of no use.
    """
    least = 2 if is_measured else _LEAST_BITS.get(kind_of(candidate.path), _OTHERS_LEAST_BITS)
    raised_specs = (raised(spec, candidate) for spec in SPECS if spec.bits >= least)
    found = dict.fromkeys(spec for spec in raised_specs if spec is not None)
    if most is None:
        return (*found, None)
    return (*(spec for spec in found if spec.bits_per_weight < most.bits_per_weight), most)


def bytes_of(shape: tuple[int, ...], dtype: str, itemsize: int, spec: Spec | None) -> int:
    """Return the bytes of a weight of this shape, unpacked, in a format; `dtype`, `itemsize`: of its scales."""
    if spec is None:
        return itemsize * prod(shape)
    return sum(num_bytes for _, _, num_bytes in spec.tensors(shape, dtype, itemsize).values())


def gaussian_losses(specs: Iterable[Spec | None]) -> dict[Spec | None, float]:
    """Return relative squared errors for weights of a normal distribution, where there are none to measure."""
    return {spec: 0.0 if spec is None else _GAUSSIAN[spec.bits] * _GROUPS[spec.group_size] for spec in specs}


_GAUSSIAN = {2: 0.104, 3: 0.0277, 4: 0.0069, 5: 0.0017, 6: 0.00044, 8: 0.000027}
"""By bits, in groups of 64, with searched scales: measured on half a million numbers."""
_GROUPS = {16: 0.6, 32: 0.8, 64: 1.0, 128: 1.1}
"""Groups of other sizes; the last as at 2 bits, the only ones that are chosen in groups of 128."""
