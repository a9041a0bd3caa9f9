"""What MLX is told of memory before a model is loaded: its limit, its buffer cache, what is wired. Pure; no MLX.

Wired memory is never paged out, which a model that nearly fills a machine needs: unwired, a 70 B model in bfloat16 on
an M2 Ultra decoded 0.23 tokens per second, wired 4.7 (mlx-examples#1069). But wiring under concurrent requests, while
buffers come and go, makes macOS panic (mlx#3186: three of three runs within two minutes, none of ten unwired). So
`auto` wires only what needs it, and then one sequence is computed at a time. Written from those reports; not run on
a Mac.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from mlx_backend.api.interface import MemoryConfig, MemoryReport
from mlx_backend.planning.machines import highest_gpu_limit
from mlx_backend.planning.memory import default_reserve

WiredPolicy = Literal["auto", "never", "always"]

WIRED_SHARE = 0.55
"""Of a machine's memory: `auto` wires weights that take more than this."""
_CACHE_SHARE = 0.25
_MOST_CACHE_BYTES = 4 * 10**9
"""Freed buffers kept for reuse: so much of what is there for KV caches and computing, and no more than this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFacts:
    """What a device says of itself; 0 where it does not say."""

    name: str = ""
    memory_bytes: int = 0
    recommended_bytes: int = 0
    """What macOS lets the GPU use, `iogpu.wired_limit_mb` counted in; 0 where there is no such GPU."""
    wired_limit_mb: int = 0
    """`iogpu.wired_limit_mb`, MiB, where somebody has set it."""

    @property
    def limit_basis(self) -> str:
        """Where `recommended_bytes` is from, in words."""
        raised = f", iogpu.wired_limit_mb={self.wired_limit_mb}" if self.wired_limit_mb else ""
        return f"the GPU's limit, of macOS{raised}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What MLX is told. Bytes; 0 of `wired_bytes` wires nothing."""

    memory_bytes: int
    cache_bytes: int
    wired_bytes: int = 0
    wired_reason: str = ""
    """Why it is wired, or not; empty where nothing can be wired."""
    single_reason: str | None = None
    """Why one sequence is computed at a time because of it."""


def decide_limits(
    facts: DeviceFacts, policy: WiredPolicy, cache_bytes: int | None, *, limit_bytes: int, weights_bytes: int
) -> Limits:
    """`limit_bytes`: all that may be used; `cache_bytes`: of freed buffers, None for a share of what is free."""
    free = max(0, limit_bytes - weights_bytes)
    cache = min(int(_CACHE_SHARE * free), _MOST_CACHE_BYTES) if cache_bytes is None else cache_bytes
    if not facts.recommended_bytes:
        return Limits(memory_bytes=limit_bytes, cache_bytes=cache)
    share = weights_bytes / facts.memory_bytes if facts.memory_bytes else 0.0
    is_wired = policy == "always" or (policy == "auto" and share > WIRED_SHARE)
    told = f"memory.wired is {policy}"
    if policy == "auto":
        told += f", and the weights take {share:.0%} of the machine's memory ({WIRED_SHARE:.0%} is the bound)"
    return Limits(
        memory_bytes=limit_bytes,
        cache_bytes=cache,
        wired_bytes=min(limit_bytes, facts.recommended_bytes) if is_wired else 0,
        wired_reason=told,
        single_reason=_SINGLE if is_wired and policy == "auto" else None,
    )


def for_process(limits: Limits, facts: DeviceFacts, process_bytes: int) -> Limits:
    """The limits of one of several models: MLX has one limit, and one of what is wired, for all of them."""
    wired = min(process_bytes, facts.recommended_bytes) if limits.wired_bytes else 0
    return replace(limits, memory_bytes=process_bytes, wired_bytes=wired)


_SINGLE = (
    "the weights are wired, and macOS is known to panic when wired memory meets concurrent requests (mlx#3186); "
    "memory.wired always computes several at a time all the same, never leaves the weights unwired"
)


def raise_command(facts: DeviceFacts, weights_bytes: int) -> str | None:
    """What a person can run to let the GPU use more; None where there is no more, or the weights still do not fit."""
    highest = highest_gpu_limit(facts.memory_bytes)
    if not facts.recommended_bytes or highest <= max(facts.recommended_bytes, weights_bytes):
        return None
    return f"sudo sysctl iogpu.wired_limit_mb={highest // 2**20}"


def report_memory(
    given: MemoryConfig, facts: DeviceFacts, limits: Limits, *, limit_bytes: int, basis: str, weights_bytes: int
) -> MemoryReport:
    """How a limit of so many bytes is divided; `basis` says where it is from."""
    return MemoryReport(
        limit_bytes=limit_bytes,
        limit_basis=basis,
        weights_bytes=weights_bytes,
        reserve_bytes=default_reserve(limit_bytes) if given.reserve_bytes is None else given.reserve_bytes,
        cache_bytes=limits.cache_bytes,
        wired_bytes=limits.wired_bytes,
        wired_reason=limits.wired_reason,
        raise_command=raise_command(facts, weights_bytes) if given.limit_bytes is None else None,
    )
