"""Blueprint of a model's folder: its config.json, and each weight with its source tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from server.importing.affine import Floats

Form = Literal["linear", "plain", "exact"]
"""linear: quantized if it is in the file; plain: numbers in the model's format; exact: float32."""
Order = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Weight:
    """One weight of the model. `target` is its name, without the last part if it is linear."""

    source: str
    target: str
    shape: tuple[int, ...]
    form: Form = "linear"
    order: Callable[[], Order] | None = None
    """Order in the model of the tensor's rows, or of a vector's values."""
    reshape: Callable[[Mapping[str, Floats]], Floats] | None = None
    """Function from values of whole tensors to the weight's, if no row stays as it is; the result is requantized."""
    others: tuple[str, ...] = ()
    """Tensors that `reshape` needs besides the source."""
    source_shape: tuple[int, ...] | None = None
    """Shape of the source, if it differs."""


@dataclass(frozen=True, slots=True)
class Blueprint:
    """Blueprint of one imported model."""

    config: dict[str, Any]
    weights: list[Weight]
    unused: frozenset[str] = frozenset()
    """Tensors of the file that became part of the configuration, or are not needed."""
    is_wide: bool = False
    """Whether activations are known to exceed float16's range."""
    notes: list[str] = field(default_factory=list)


def interleaved(num_heads: int, head_dim: int) -> Callable[[], Order]:
    """Return the order of a head's rows that undoes ggml's, in which rows rotated together are adjacent."""

    def order() -> Order:
        rows = np.arange(num_heads * head_dim).reshape(num_heads, head_dim // 2, 2)
        return rows.swapaxes(1, 2).reshape(-1)

    return order
