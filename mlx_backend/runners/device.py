"""The device under MLX: what it says of itself, and the limits it is told. The only file that knows MLX's own names.

Written from MLX's documentation and source; the part for Metal was not run on a Mac.
"""

from __future__ import annotations

import contextlib
import ctypes
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any

import mlx.core as mx

from mlx_backend.planning.limits import DeviceFacts, Limits
from mlx_backend.planning.machines import available_bytes

_lock = threading.Lock()
_in_force: dict[object, Limits] = {}
"""Limits are the process's: what each loaded model wants of them, by whoever loaded it."""


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


def needs_warm_shapes() -> bool:
    """Whether a chunk or a step of a new shape takes much longer than one of a known shape: kernels are prepared.

    Metal's kernels, and a CPU's, take any shape.
    """
    return bool(mx.default_device() != mx.cpu and mx.cuda.is_available())


def memory_limit(facts: DeviceFacts) -> tuple[int | None, str]:
    """(bytes that the device may have, where that is from)."""
    if facts.recommended_bytes:
        return facts.recommended_bytes, facts.limit_basis
    return available_bytes(), "memory available at start"


def apply_limits(limits: Limits, owner: object = None) -> None:
    """Tell MLX. Freed buffers are given back before active and cached bytes together pass the limit.

    Of several models, each an owner, the most that one of them wants holds, until it is released.
    """
    with _lock:
        _in_force[owner] = limits
        mx.set_memory_limit(max(each.memory_bytes for each in _in_force.values()))
        mx.set_cache_limit(max(each.cache_bytes for each in _in_force.values()))
        mx.set_wired_limit(_wired_bytes())


def release(owner: object = None) -> None:
    """Unwire, when everything that was computed is done: memory that stays wired is lost until a restart."""
    mx.synchronize()
    with _lock:
        _in_force.pop(owner, None)
        mx.set_wired_limit(_wired_bytes())
        mx.clear_cache()
    _trim()


def _trim() -> None:
    """Give freed memory back to the system: glibc keeps what a thread has freed for other threads, without bound."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another libc has no such call, nor the habit
            ctypes.CDLL(None).malloc_trim(0)


def _wired_bytes() -> int:
    return max((each.wired_bytes for each in _in_force.values()), default=0)
