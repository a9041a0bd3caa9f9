"""The device under MLX: what it says of itself, and the limits it is told. The only file that knows MLX's own names.

Written from MLX's documentation and source; the part for Metal was not run on a Mac.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping
from typing import Any

import mlx.core as mx

from mlx_backend.limits import DeviceFacts, Limits


def _read_sysctl() -> str:
    command = ["/usr/sbin/sysctl", "-n", "iogpu.wired_limit_mb"]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout


def read_facts(info: Mapping[str, Any] | None = None, sysctl: Callable[[], str] = _read_sysctl) -> DeviceFacts:
    """`info`: what `mx.device_info()` returns; a CPU's has a name and nothing of memory. `sysctl`: the set limit."""
    said = mx.device_info() if info is None else info
    name, recommended = str(said.get("device_name", "")), int(said.get("max_recommended_working_set_size", 0))
    if not recommended:
        return DeviceFacts(name=name)
    try:
        wired_limit_mb = int(sysctl())
    except (OSError, ValueError, subprocess.SubprocessError):
        wired_limit_mb = 0
    return DeviceFacts(
        name=name,
        memory_bytes=int(said.get("memory_size", 0)),
        recommended_bytes=recommended,
        wired_limit_mb=wired_limit_mb,
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
