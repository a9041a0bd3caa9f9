"""Blueprint: what a model's folder is made of: its config.json, and each weight with the tensor it comes from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from server.importing.affine import Floats

Form = Literal["linear", "plain", "exact"]
"""linear: quantized where the file has it so; plain: numbers in the model's format; exact: float32."""
Order = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Weight:
    """One weight of the model. `target` is its name without the last part where it is linear."""

    source: str
    target: str
    shape: tuple[int, ...]
    form: Form = "linear"
    order: Callable[[], Order] | None = None
    """The rows of the tensor, or the values of a vector, in the model's order."""
    reshape: Callable[[Mapping[str, Floats]], Floats] | None = None
    """Makes the values out of those of whole tensors, where no row stays as it is; they are quantized anew."""
    others: tuple[str, ...] = ()
    """Tensors that `reshape` needs beside the source."""
    source_shape: tuple[int, ...] | None = None
    """Of the source, where it differs."""


@dataclass(frozen=True, slots=True)
class Blueprint:
    """A model as it will be."""

    config: dict[str, Any]
    weights: list[Weight]
    unused: frozenset[str] = frozenset()
    """Tensors of the file that have gone into the configuration, or are not needed."""
    is_wide: bool = False
    """Whether activations are known to leave float16's range."""
    notes: list[str] = field(default_factory=list)


def interleaved(num_heads: int, head_dim: int) -> Callable[[], Order]:
    """The order of a head's rows that undoes ggml's: there pairs that are rotated together are neighbours."""

    def order() -> Order:
        rows = np.arange(num_heads * head_dim).reshape(num_heads, head_dim // 2, 2)
        return rows.swapaxes(1, 2).reshape(-1)

    return order
