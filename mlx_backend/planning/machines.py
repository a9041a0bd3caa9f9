"""Macs: memory, bandwidth and GPU cores of each, and identification of this computer. No MLX.

The rows are data (`data/machines.json`), each with the source of its numbers. The limit that macOS sets for the GPU is
an estimate in most rows; a running server reads the real one and never this.
"""

from __future__ import annotations

import difflib
import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

_ROWS = Path(__file__).parent / "data" / "machines.json"
_GIB = 2**30
_ESTIMATED = "estimated: 75 % of memory above 32 GB, 2/3 up to that; macOS reports the real limit"


@dataclass(frozen=True, slots=True)
class Machine:
    """One configuration of a Mac, or the known properties of another computer: 0 and "" mean unknown."""

    id: str
    name: str
    chip: str
    gpu_cores: int
    bandwidth: int
    """Most bytes per second between memory and GPU."""
    memory_bytes: int
    gpu_limit_bytes: int
    """Memory that the GPU may use by default."""
    gpu_limit_basis: str
    """Starts with `measured` or `estimated` for a Mac."""
    source: str

    @property
    def generation(self) -> int | None:
        """3 for every M3; None for other chips."""
        found = re.fullmatch(r"M(\d+)(?: (?:Pro|Max|Ultra))?", self.chip)
        return int(found[1]) if found else None


class UnknownMachine(LookupError):
    """There is no row with this id; `nearest` are the most similar ids, best first."""

    def __init__(self, machine_id: str, nearest: Sequence[str]) -> None:
        self.nearest = tuple(nearest)
        hint = f"Nearest: {', '.join(self.nearest)}." if self.nearest else "An id looks like m3-ultra-512."
        super().__init__(f"Unknown machine {machine_id!r}. {hint}")


@cache
def load_machines() -> tuple[Machine, ...]:
    """Return every row of the data file, oldest chip first."""
    return tuple(Machine(**row) for row in json.loads(_ROWS.read_text(encoding="utf-8"))["machines"])


def find_machine(machine_id: str) -> Machine:
    """Return the row with this id, in any case. Raises UnknownMachine."""
    wanted = machine_id.strip().lower()
    by_id = {machine.id: machine for machine in load_machines()}
    if wanted not in by_id:
        raise UnknownMachine(machine_id, difflib.get_close_matches(wanted, by_id, n=4))
    return by_id[wanted]


def estimated_gpu_limit(memory_bytes: int) -> int:
    """Estimate the GPU's default limit, in bytes, by a rule of thumb. Measured limits were up to 84 % of memory."""
    return memory_bytes * 3 // 4 if memory_bytes > 32 * _GIB else memory_bytes * 2 // 3


def highest_gpu_limit(memory_bytes: int) -> int:
    """Return the highest advisable GPU limit: nine tenths, with at least 8 GiB left to macOS.

    448 of 512 GB and 170 of 192 GB are in use; 16 GB machines beyond 85 % have panicked.
    """
    return max(0, min(memory_bytes * 9 // 10, memory_bytes - 8 * _GIB))


def _read_sysctl() -> str:
    command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string", "hw.memsize"]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout


def _read_meminfo() -> str:
    return Path("/proc/meminfo").read_text(encoding="ascii")


def this_machine(
    *,
    platform: str = sys.platform,
    sysctl: Callable[[], str] = _read_sysctl,
    meminfo: Callable[[], str] = _read_meminfo,
) -> Machine | None:
    """Return this computer, or None if it cannot be identified.

    `sysctl` returns two lines, the brand and the bytes of memory; `meminfo` the text of /proc/meminfo.
    """
    try:
        if platform == "darwin":
            brand, memory = sysctl().splitlines()[:2]
            return _mac(brand.strip().removeprefix("Apple "), int(memory))
        if platform == "linux":
            return _other("Linux", _total_memory(meminfo()))
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return None


def available_bytes(meminfo: Callable[[], str] = _read_meminfo) -> int | None:
    """Return the memory still available on Linux, as the kernel estimates it; None if it does not report it."""
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB$", meminfo(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def _mac(chip: str, memory_bytes: int) -> Machine:
    of_chip = [machine for machine in load_machines() if machine.chip == chip]
    if not of_chip:
        limit = estimated_gpu_limit(memory_bytes)
        return replace(_other(chip, memory_bytes), gpu_limit_bytes=limit, gpu_limit_basis=_ESTIMATED)
    fitting = [machine for machine in of_chip if machine.memory_bytes == memory_bytes]
    best = max(fitting or of_chip, key=lambda machine: machine.gpu_cores)
    if not fitting:
        best = _resized(best, memory_bytes)
    return replace(best, name=f"{best.name} (GPU cores assumed)") if len(fitting) != 1 else best


def _resized(machine: Machine, memory_bytes: int) -> Machine:
    return replace(
        machine,
        id="this",
        name=f"{machine.chip}, {machine.gpu_cores}-core GPU, {memory_bytes // _GIB} GB",
        memory_bytes=memory_bytes,
        gpu_limit_bytes=estimated_gpu_limit(memory_bytes),
        gpu_limit_basis=_ESTIMATED,
    )


def _total_memory(meminfo: str) -> int:
    found = re.search(r"^MemTotal:\s+(\d+) kB$", meminfo, re.MULTILINE)
    if found is None:
        raise ValueError("no MemTotal in /proc/meminfo")
    return int(found[1]) * 1024


def _other(name: str, memory_bytes: int) -> Machine:
    """Return a computer without a row: its memory is known, its speed is not."""
    return Machine(
        id="this",
        name=f"{name}, {memory_bytes // _GIB} GB",
        chip="",
        gpu_cores=0,
        bandwidth=0,
        memory_bytes=memory_bytes,
        gpu_limit_bytes=memory_bytes,
        gpu_limit_basis="all of the memory: no macOS limit applies",
        source="this computer",
    )
