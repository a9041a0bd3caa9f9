"""Facts about macOS: its version, wired memory, and panics of the GPU driver. Never raises; no MLX.

Written from sw_vers(1), vm_stat(1) and from panic reports that users have published; not run on a Mac.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from mlx_backend.planning.wiring import Panic, Version, parse_version

PANIC_FOLDER = Path("/Library/Logs/DiagnosticReports")
_SIGNATURE = re.compile(rb"IOGPU\w*\.cpp")
"""As in `"completeMemory() prepare count underflow" @IOGPUMemory.cpp:550`. "IOGPU" alone proves nothing: reports list
the loaded extensions, and the driver is one of them."""
_CALENDAR = re.compile(rb"Calendar\s*:\s*0x([0-9a-fA-F]{1,16})")
"""Time of the panic; the report is written after the restart."""
_MOST_BYTES = 1 << 20
"""Bytes read of a report; the relevant part is at its start."""
_MOST_FILES = 200

Run = Callable[[Sequence[str]], str]


def _run(command: Sequence[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout


def macos_version(run: Run = _run) -> tuple[Version, str]:
    """Return ((26, 5, 2), "25F84"), for example; ((), "") if unknown."""
    text = _ask(run, ["/usr/bin/sw_vers"])
    fields = dict(re.findall(r"^(\w+):\s*(\S+)", text, re.MULTILINE))
    return parse_version(fields.get("ProductVersion", "")), fields.get("BuildVersion", "")


def wired_bytes(run: Run = _run) -> int:
    """Return the wired bytes of the whole machine; 0 if unknown."""
    text = _ask(run, ["/usr/bin/vm_stat"])
    page, pages = re.search(r"page size of (\d+) bytes", text), re.search(r"Pages wired down:\s+(\d+)", text)
    return int(page[1]) * int(pages[1]) if page and pages else 0


def _ask(run: Run, command: Sequence[str]) -> str:
    try:
        return run(command)
    except (OSError, ValueError, subprocess.SubprocessError):
        return ""


def find_panics(folder: Path = PANIC_FOLDER) -> list[Panic]:
    """Return panics of the GPU driver, oldest first, without unreadable reports."""
    found = []
    with contextlib.suppress(OSError):
        files = [path for path in folder.iterdir() if path.name.endswith(".panic")]
        for path in sorted(files, key=_changed_at)[-_MOST_FILES:]:
            panic = _read_panic(path)
            if panic is not None:
                found.append(panic)
    return sorted(found, key=lambda panic: panic.at)


def _changed_at(path: Path) -> float:
    try:
        return path.lstat().st_mtime
    except OSError:
        return 0.0


def _read_panic(path: Path) -> Panic | None:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
        with open(handle, "rb") as file:
            about = os.fstat(handle)
            if not stat.S_ISREG(about.st_mode):
                return None
            text = file.read(_MOST_BYTES)
    except OSError:
        return None
    if not _SIGNATURE.search(text):
        return None
    calendar = _CALENDAR.search(text)
    at = float(int(calendar[1], 16)) if calendar else about.st_mtime
    return Panic(path.name, min(at, about.st_mtime) if at > 0 else about.st_mtime)
