"""How the memory is divided between models of one server. Pure arithmetic over footprints; bytes."""

from __future__ import annotations

from collections.abc import Iterable

from mlx_backend.api.interface import Footprint


def choose_share(free_bytes: int, model: Footprint, others: Iterable[Footprint]) -> int:
    """Of what is free, what `model` gets, for as long as it is loaded.

    What it wants; and of what is left then, when those of `others`, which are not loaded, that could be loaded beside
    it have what they want, the same part as each of them. The smallest come first.
    """
    rest = free_bytes - model.wanted_bytes
    if rest <= 0:
        return free_bytes
    num_parts = 1
    for other in sorted(others, key=lambda each: each.wanted_bytes):
        if other.wanted_bytes > rest:
            break
        rest -= other.wanted_bytes
        num_parts += 1
    return model.wanted_bytes + rest // num_parts


def too_large(name: str, model: Footprint, limit_bytes: int, pinned_bytes: int) -> str:
    """Why a model can never be loaded, in numbers."""
    pinned = f", of which models that stay hold {_gb(pinned_bytes)}" if pinned_bytes else ""
    return (
        f"the model '{name}' does not fit: it needs {_gb(model.least_bytes)} at least ({_gb(model.weights_bytes)} of "
        f"them weights), and all models together may use {_gb(limit_bytes)}{pinned}"
    )


def _gb(size: int) -> str:
    return f"{size / 1e9:,.2f} GB ({size:,} bytes)"
