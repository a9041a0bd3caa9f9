"""The device under MLX: what it says of itself, and the limits it is told. The only file that knows MLX's own names.

Written from MLX's documentation and source; the part for Metal was not run on a Mac.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx

from mlx_backend.limits import DeviceFacts, Limits


def read_facts(info: Mapping[str, Any] | None = None) -> DeviceFacts:
    """`info`: what `mx.device_info()` returns; a CPU's has a name and nothing of memory."""
    said = mx.device_info() if info is None else info
    return DeviceFacts(
        name=str(said.get("device_name", "")),
        memory_bytes=int(said.get("memory_size", 0)) if "max_recommended_working_set_size" in said else 0,
        recommended_bytes=int(said.get("max_recommended_working_set_size", 0)),
    )


def has_fused_attention() -> bool:
    """Whether attention runs in kernels that keep no score matrix."""
    return bool(mx.default_device() != mx.cpu)


def apply_limits(limits: Limits) -> None:
    """Tell MLX. Freed buffers are given back before active and cached bytes together pass the limit."""
    mx.set_memory_limit(limits.memory_bytes)
    mx.set_cache_limit(limits.cache_bytes)
    mx.set_wired_limit(limits.wired_bytes)


def release() -> None:
    """Unwire, when everything that was computed is done: memory that stays wired is lost until a restart."""
    mx.synchronize()
    mx.set_wired_limit(0)
    mx.clear_cache()
