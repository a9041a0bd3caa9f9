"""Memory of a model, estimated before it is loaded, for a server of several models. Pure; no MLX."""

from __future__ import annotations

from mlx_backend.api.interface import Footprint, MemoryConfig
from mlx_backend.planning.admission import Budget, Reservation
from mlx_backend.planning.memory import MOST_RESERVE_BYTES

WANTED_TOKENS = 4096
"""Other models are unloaded until a request of this many tokens, prompt and output, fits beside the weights."""


def estimate_footprint(budget: Budget, context: int, memory: MemoryConfig, limit_bytes: int | None) -> Footprint:
    """Estimate the memory of the model in `budget`, ignoring its limit. `context`: most tokens of a request."""
    weights = budget.shape.weights_bytes

    def share_for(num_tokens: int) -> int:
        return _with_reserve(weights + budget.needed([Reservation(1, num_tokens, num_tokens)]), memory.reserve_bytes)

    least = share_for(1)
    return Footprint(
        weights_bytes=weights,
        least_bytes=least,
        wanted_bytes=max(least, share_for(min(context, WANTED_TOKENS))),
        limit_bytes=limit_bytes,
    )


def _with_reserve(used_bytes: int, reserve_bytes: int | None) -> int:
    """Return the smallest share that leaves `used_bytes` after its reserve is subtracted."""
    if reserve_bytes is not None:
        return used_bytes + reserve_bytes
    return min(-(-used_bytes * 10 // 9) + 1, used_bytes + MOST_RESERVE_BYTES)
