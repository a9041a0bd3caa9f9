"""Options for allocation: the formats that a weight may have, with bytes and loss of each. Pure; no MLX.

If the model cannot be run, the loss of a format is the relative squared error of the weight, measured on a sample: for
inputs without a pattern, that is the relative squared error of the layer's output, and the errors of layers are summed.
A layer's routed experts count as one weight, since a token passes through a few of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import log, prod

from mlx_backend.conversion.kinds import kind_of
from mlx_backend.conversion.recipes import Candidate, raised
from mlx_backend.conversion.spec import Spec

SPECS = (Spec(2, 128), Spec(2), Spec(3), Spec(4), Spec(5), Spec(6), Spec(8))
"""Formats that allocation chooses from, besides leaving the weight as it is."""
MEASURED_SPECS = (
    *(Spec(bits, group_size) for bits in (2, 3, 4) for group_size in (128, 64, 32)),
    Spec(5),
    Spec(6),
    Spec(8),
)
"""Formats that allocation chooses from if losses are measured: smaller groups are then a finer choice."""
_LEAST_BITS = {"routed experts": 2, "shared experts": 3, "MLP": 3}
_OTHERS_LEAST_BITS = 4
"""Usual least bits of other weights if sensitivities are not measured: below, errors do not merely add up."""
_FEW_BITS_COST = 1e6
"""Factor on the loss of fewer bits than usual: they are chosen only if nothing else fits."""


def allowed(candidate: Candidate, *, is_measured: bool, most: Spec | None = None) -> tuple[Spec | None, ...]:
    """Return the formats that a weight may have within the floors; None among them: as it is.

    `most`: its format in the source; more bits than that are useless.
    """
    raised_specs = (raised(spec, candidate) for spec in (MEASURED_SPECS if is_measured else SPECS))
    found = dict.fromkeys(spec for spec in raised_specs if spec is not None)
    if most is None:
        return (*found, None)
    return (*(spec for spec in found if spec.bits_per_weight < most.bits_per_weight), most)


def has_few_bits(path: str, spec: Spec | None) -> bool:
    """Return whether the format has fewer bits than a weight of this kind usually needs, if nothing was measured."""
    return spec is not None and spec.bits < _LEAST_BITS.get(kind_of(path), _OTHERS_LEAST_BITS)


def unmeasured(path: str, spec: Spec | None, loss: float) -> float:
    """Return the loss to count for a weight's relative squared error if its effect was not measured."""
    return loss * _FEW_BITS_COST if has_few_bits(path, spec) else loss


def bytes_of(shape: tuple[int, ...], dtype: str, itemsize: int, spec: Spec | None) -> int:
    """Return the bytes of an unpacked weight of this shape in a format; `dtype`, `itemsize`: those of its scales."""
    if spec is None:
        return itemsize * prod(shape)
    return sum(num_bytes for _, _, num_bytes in spec.tensors(shape, dtype, itemsize).values())


def gaussian_losses(specs: Iterable[Spec | None]) -> dict[Spec | None, float]:
    """Return relative squared errors for normally distributed weights, if there are none to measure."""
    return {spec: 0.0 if spec is None else _GAUSSIAN[spec.bits] * _GROUPS[spec.group_size] for spec in specs}


_GAUSSIAN = {2: 0.104, 3: 0.0277, 4: 0.0069, 5: 0.0017, 6: 0.00044, 8: 0.000027}
"""Errors by bits, in groups of 64, with searched scales: measured on half a million numbers."""
_GROUPS = {16: 0.6, 32: 0.8, 64: 1.0, 128: 1.1}
"""Factors for groups of other sizes; the last as at 2 bits, the only bits that are chosen in groups of 128."""


# --- measured losses


def probes_of(specs: Sequence[Spec]) -> tuple[Spec, ...]:
    """Return the formats to measure losses of: the one with the fewest bits in groups of 64, and one of 4."""
    ordered = sorted(specs, key=lambda spec: (spec.bits, abs(spec.group_size - 64)))
    fours = sorted(specs, key=lambda spec: (abs(spec.bits - 4), abs(spec.group_size - 64)))
    return tuple(dict.fromkeys((*ordered[:1], *fours[:1])))


def interpolated(errors: Mapping[Spec, float], kls: Mapping[Spec, float]) -> dict[Spec, float]:
    """Return the loss of every format: a power of the error of the layer's outputs, fitted to the measurements.

    A small change of a layer's outputs changes predictions in proportion to its square, so the power is about 1.
    """
    if not kls:
        return {}
    (worst, high), (best, low) = max(kls.items(), key=_by_loss), min(kls.items(), key=_by_loss)
    power = 1.0
    if errors[worst] > errors[best] > 0 and low > 0:
        power = min(_POWERS[1], max(_POWERS[0], log(high / low) / log(errors[worst] / errors[best])))
    found = {}
    for spec, error in errors.items():
        near, loss = min(kls.items(), key=lambda each: abs(each[0].bits - spec.bits))
        found[spec] = kls[spec] if spec in kls else loss * (error / errors[near]) ** power if errors[near] > 0 else 0.0
    return found


def _by_loss(each: tuple[Spec, float]) -> float:
    return each[1]


_POWERS = (0.5, 2.0)
