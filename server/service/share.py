"""Division of memory between the models of one server. Pure arithmetic over footprints; bytes."""

from __future__ import annotations

from collections.abc import Iterable

from mlx_backend.api.interface import Footprint


def choose_share(free_bytes: int, model: Footprint, others: Iterable[Footprint]) -> int:
    """Return the share of the free memory that `model` gets while it is loaded.

    The share is what it wants, plus an equal part of the rest, after the unloaded `others` that fit beside it have
    what they want; each of those gets the same part. The smallest come first.
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
    """Return the message for a model that can never be loaded, with numbers."""
    pinned = f", of which pinned models hold {_gb(pinned_bytes)}" if pinned_bytes else ""
    return (
        f"the model '{name}' does not fit: it needs at least {_gb(model.least_bytes)} ({_gb(model.weights_bytes)} of "
        f"it weights), and all models together may use {_gb(limit_bytes)}{pinned}"
    )


def _gb(size: int) -> str:
    return f"{size / 1e9:,.2f} GB ({size:,} bytes)"
