"""Limits set in MLX before a model is loaded: on memory, and on its cache of freed buffers. Pure; no MLX.

`wiring` decides whether weights are wired, which takes effect when they are loaded.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from mlx_backend.api.interface import MemoryConfig, MemoryReport
from mlx_backend.planning.machines import highest_gpu_limit
from mlx_backend.planning.memory import default_reserve
from mlx_backend.planning.wiring import Wiring

_CACHE_SHARE = 0.25
_MOST_CACHE_BYTES = 4 * 10**9
"""Freed buffers kept for reuse: this share of the memory for KV caches and computing, and at most this many bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFacts:
    """Properties that a device reports; 0 if it does not."""

    name: str = ""
    memory_bytes: int = 0
    recommended_bytes: int = 0
    """Memory that macOS lets the GPU use, including `iogpu.wired_limit_mb`; 0 without such a GPU."""
    wired_limit_mb: int = 0
    """`iogpu.wired_limit_mb`, MiB, if it is set."""

    @property
    def limit_basis(self) -> str:
        """Origin of `recommended_bytes`, in words."""
        raised = f", iogpu.wired_limit_mb={self.wired_limit_mb}" if self.wired_limit_mb else ""
        return f"the GPU's limit, of macOS{raised}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits in bytes."""

    memory_bytes: int
    cache_bytes: int


def decide_limits(cache_bytes: int | None, *, limit_bytes: int, weights_bytes: int) -> Limits:
    """Return the limits. `limit_bytes`: all usable memory; `cache_bytes`: of freed buffers, None for the default."""
    free = max(0, limit_bytes - weights_bytes)
    cache = min(int(_CACHE_SHARE * free), _MOST_CACHE_BYTES) if cache_bytes is None else cache_bytes
    return Limits(memory_bytes=limit_bytes, cache_bytes=cache)


def for_process(limits: Limits, process_bytes: int) -> Limits:
    """Return the limits of a process with several models: MLX has one limit for all of them."""
    return replace(limits, memory_bytes=process_bytes)


def raise_command(facts: DeviceFacts, weights_bytes: int) -> str | None:
    """Return a command that lets the GPU use more memory; None if it cannot, or the weights still do not fit."""
    highest = highest_gpu_limit(facts.memory_bytes)
    if not facts.recommended_bytes or highest <= max(facts.recommended_bytes, weights_bytes):
        return None
    return f"sudo sysctl iogpu.wired_limit_mb={highest // 2**20}"


def report_memory(
    given: MemoryConfig,
    facts: DeviceFacts,
    limits: Limits,
    wiring: Wiring,
    *,
    limit_bytes: int,
    basis: str,
    weights_bytes: int,
) -> MemoryReport:
    """Report how a limit of this many bytes is divided; `basis` is its origin."""
    return MemoryReport(
        limit_bytes=limit_bytes,
        limit_basis=basis,
        weights_bytes=weights_bytes,
        reserve_bytes=default_reserve(limit_bytes) if given.reserve_bytes is None else given.reserve_bytes,
        cache_bytes=limits.cache_bytes,
        wired_bytes=wiring.wired_bytes,
        wired_reason=wiring.reason,
        raise_command=raise_command(facts, weights_bytes) if given.limit_bytes is None else None,
    )
