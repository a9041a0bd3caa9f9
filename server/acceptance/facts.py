"""Facts of the machine, for reading its figures. Uses the system's own commands; no MLX.

Written from the manual pages of sysctl(8), sw_vers(1), system_profiler(8) and pmset(1); not run on a Mac.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from mlx_backend.planning.machines import this_machine
from mlx_backend.planning.macos import find_panics, macos_version, wired_bytes

Run = Callable[[Sequence[str]], str]

_SYSCTLS = (
    "machdep.cpu.brand_string",
    "hw.model",
    "hw.memsize",
    "hw.ncpu",
    "hw.perflevel0.physicalcpu",
    "hw.perflevel1.physicalcpu",
    "iogpu.wired_limit_mb",
    "iogpu.wired_lwm_mb",
    "iogpu.rsrc_limit",
    "iogpu.dynamic_lwm",
    "iogpu.disable_wired_collector",
    "kern.hv_vmm_present",
    "vm.swapusage",
)
_PACKAGES = ("pippin", "mlx", "mlx-metal", "mlx-lm")
_VARIABLES = re.compile(r"(MLX|PIPPIN)_\w+")
_TIMEOUT_S = 20


def _run(command: Sequence[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=_TIMEOUT_S).stdout


def gather(run: Run = _run, system: str = sys.platform) -> dict[str, Any]:
    """Return all facts, except those that the system does not have or report."""
    machine = this_machine()
    found: dict[str, Any] = {
        "platform": system,
        "architecture": platform.machine(),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "machine": None if machine is None else machine.name,
        "memory_bytes": None if machine is None else machine.memory_bytes,
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
        "wheels": {name: tags for name in _PACKAGES if (tags := _wheel_tags(name))},
        "environment": {name: value for name, value in os.environ.items() if _VARIABLES.fullmatch(name)},
    }
    return found | _of_macos(run) if system == "darwin" else found


def boot_id(run: Run = _run, system: str = sys.platform) -> str:
    """Return a text that changes with each start of the machine; empty if unknown."""
    if system == "darwin":
        found = re.search(r"sec = (\d+)", _ask(run, ["/usr/sbin/sysctl", "-n", "kern.boottime"]))
        return found[1] if found else ""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return ""


def _of_macos(run: Run) -> dict[str, Any]:
    version, build = macos_version(run)
    settings = {name: text for name in _SYSCTLS if (text := _ask(run, ["/usr/sbin/sysctl", "-n", name]).strip())}
    return {
        "macos": ".".join(map(str, version)),
        "macos_build": build,
        "sysctl": settings,
        "gpu_cores": gpu_cores(_ask(run, ["/usr/sbin/system_profiler", "-json", "SPDisplaysDataType"])),
        "is_virtual": settings.get("kern.hv_vmm_present") == "1",
        "thermal": " ".join(_ask(run, ["/usr/bin/pmset", "-g", "therm"]).split())[:500],
        "wired_bytes": wired_bytes(run),
        "panics": [str(panic) for panic in find_panics()],
    }


def gpu_cores(report: str) -> int | None:
    """Return the number of GPU cores in system_profiler's report; None if missing."""
    try:
        displays = json.loads(report)["SPDisplaysDataType"]
        return next(int(each["sppci_cores"]) for each in displays if "sppci_cores" in each)
    except (ValueError, KeyError, TypeError, StopIteration):
        return None


def _ask(run: Run, command: Sequence[str]) -> str:
    try:
        return run(command)
    except (OSError, ValueError, subprocess.SubprocessError):
        return ""


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _wheel_tags(name: str) -> list[str]:
    """Return the tags of the wheel a package was installed from.

    Only the wheel for macOS 26 has the kernels of an M5.
    """
    try:
        text = metadata.distribution(name).read_text("WHEEL") or ""
    except metadata.PackageNotFoundError:
        return []
    return re.findall(r"^Tag: (\S+)", text, re.MULTILINE)
