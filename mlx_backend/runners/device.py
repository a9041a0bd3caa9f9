"""The device under MLX: its properties, and the limits set on it. The only file that uses MLX's own names for them.

Written from MLX's documentation and source; the part for Metal was not run on a Mac.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any

import mlx.core as mx

from mlx_backend.planning.limits import DeviceFacts, Limits
from mlx_backend.planning.machines import available_bytes
from mlx_backend.planning.wiring import Version, filler_sizes, parse_version, slack_bytes, wired_limit

_lock = threading.Lock()
_in_force: dict[object, Limits] = {}
"""Limits in force, by owner: they are global to the process, and each loaded model has its own."""
_fillers: list[mx.array] = []
"""Arrays that fill the room between the wired weights and the limit."""


def _read_sysctl() -> str:
    command = ["/usr/sbin/sysctl", "-n", "iogpu.wired_limit_mb"]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout


def read_facts(info: Mapping[str, Any] | None = None, sysctl: Callable[[], str] = _read_sysctl) -> DeviceFacts:
    """Read the facts. `info`: the result of `mx.device_info()`; a CPU's has no memory. `sysctl`: the set limit."""
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
    """Return whether attention runs in kernels that keep no score matrix."""
    return bool(mx.default_device() != mx.cpu)


def needs_warm_shapes() -> bool:
    """Return whether the first chunk or step of a new shape takes much longer, as kernels are prepared for it.

    Metal's kernels, and a CPU's, take any shape.
    """
    return bool(mx.default_device() != mx.cpu and mx.cuda.is_available())


def memory_limit(facts: DeviceFacts) -> tuple[int | None, str]:
    """Return (bytes that the device may have, the source of that number)."""
    if facts.recommended_bytes:
        return facts.recommended_bytes, facts.limit_basis
    return available_bytes(), "memory available at start"


def apply_limits(limits: Limits, owner: object = None) -> None:
    """Apply limits to MLX. Freed buffers are returned before active and cached bytes together pass the limit.

    Each of several models is an owner. The largest limit among them is in force until its owner releases it.
    """
    with _lock:
        _in_force[owner] = limits
        mx.set_memory_limit(max(each.memory_bytes for each in _in_force.values()))
        mx.set_cache_limit(max(each.cache_bytes for each in _in_force.values()))


def mlx_version() -> Version:
    """Return MLX's version, such as (0, 32, 4)."""
    return parse_version(mx.__version__)


def wire(num_arrays: int, recommended_bytes: int) -> int:
    """Wire all live arrays, and no later ones; return the bytes. `num_arrays`: at least the number of live arrays.

    Nothing may be computing. Freed buffers are released first, as MLX would wire those that it keeps for reuse, too;
    `planning.wiring` explains the rest. Raises ValueError and RuntimeError.
    """
    mx.synchronize()
    mx.clear_cache()
    limit = wired_limit(mx.get_active_memory(), num_arrays, mmap.PAGESIZE, recommended_bytes)
    mx.set_wired_limit(limit)
    for size in filler_sizes(slack_bytes(num_arrays, mmap.PAGESIZE), mmap.PAGESIZE):
        filler = mx.zeros((size,), dtype=mx.uint8)
        mx.eval(filler)
        _fillers.append(filler)
    return limit


def unwire() -> None:
    """Unwire, after every computation has ended: memory that stays wired may be lost until the machine restarts."""
    mx.synchronize()
    mx.set_wired_limit(0)
    _fillers.clear()


def release(owner: object = None) -> None:
    """Return freed memory, and drop the limits of a released model."""
    mx.synchronize()
    with _lock:
        _in_force.pop(owner, None)
        mx.clear_cache()
    _trim()


def _trim() -> None:
    """Return freed memory to the system: glibc keeps what a thread has freed for other threads, without bound."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another libc has neither this call nor this behavior
            ctypes.CDLL(None).malloc_trim(0)
