"""Power and temperature on a Mac, read from `macmon` without root; without it, nothing is reported.

Owns the program from start to close. Written from its documentation and not run on a Mac.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

logger = logging.getLogger("pippin.power")

_INTERVAL_MS = 2000
_END_S = 2.0
_FOLDERS = ("/opt/homebrew/bin", "/usr/local/bin", "/opt/local/bin")
"""Places of installation that are not in the path of a launchd service."""

POWER_FIELDS: Mapping[str, str] = {
    "cpu_power": "cpu",
    "gpu_power": "gpu",
    "ane_power": "ane",
    "ram_power": "ram",
    "all_power": "chip",
    "sys_power": "system",
}
"""macmon's names, and their parts: `chip` is CPU, GPU and ANE together, `system` the machine."""
TEMPERATURE_FIELDS: Mapping[str, str] = {"cpu_temp_avg": "cpu", "gpu_temp_avg": "gpu"}


@dataclass(frozen=True, slots=True)
class Reading:
    """Watts and degrees Celsius by part, as far as the machine reports them."""

    watts: Mapping[str, float]
    celsius: Mapping[str, float]


def find_command() -> tuple[str, ...] | None:
    """Return the command to run; None without macmon, or on other systems."""
    if sys.platform != "darwin":
        return None
    found = shutil.which("macmon", path=os.pathsep.join((os.environ.get("PATH", ""), *_FOLDERS)))
    return None if found is None else (found, "pipe", "-s", "0", "-i", str(_INTERVAL_MS))


def read_line(line: str) -> Reading | None:
    """Parse one line of macmon; None if it is not a reading."""
    try:
        told = json.loads(line)
    except ValueError:
        return None
    if not isinstance(told, dict):
        return None
    temperatures = told.get("temp")
    return Reading(_numbers(told, POWER_FIELDS), _numbers(temperatures, TEMPERATURE_FIELDS))


def _numbers(told: Any, fields: Mapping[str, str]) -> dict[str, float]:
    """Return the numbers by part; a missing sensor reads 0 or has no field."""
    if not isinstance(told, dict):
        return {}
    pairs = ((part, told.get(name)) for name, part in fields.items())
    found = {part: float(value) for part, value in pairs if isinstance(value, int | float)}
    optional = ("system", "cpu", "gpu") if fields is TEMPERATURE_FIELDS else ("system",)
    return {part: value for part, value in found.items() if value or part not in optional}


class PowerMeter:
    """The newest reading of a running macmon. With `command` None there is never a reading."""

    def __init__(self, command: Sequence[str] | None) -> None:
        self._command = command
        self._process: subprocess.Popen[str] | None = None
        self._thread: threading.Thread | None = None
        self.reading: Reading | None = None
        """None before the first reading, and after the program has ended."""

    def start(self) -> None:
        """Run the program, if there is one. Returns at once."""
        if self._command is None:
            return
        try:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        except OSError as error:
            logger.warning("power and temperature are not measured: %s", error)
            return
        self._thread = threading.Thread(target=self._read, args=(self._process,), name="power", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the program. Idempotent."""
        if self._process is None or self._thread is None:
            return
        self._process.terminate()
        self._thread.join(_END_S)
        if self._thread.is_alive():
            self._process.kill()
            self._thread.join(_END_S)

    def _read(self, process: subprocess.Popen[str]) -> None:
        with process:
            assert process.stdout is not None
            for line in process.stdout:
                self.reading = read_line(line) or self.reading
        self.reading = None
