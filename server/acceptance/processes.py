"""Processes of the kit: one per step, which writes JSON lines; and a server, from its start to SIGTERM."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

END_S = 90.0
"""Time of a process to end after SIGTERM: one killed while memory is wired may leave it wired."""
_SERVING = re.compile(r" serving .* on http://")
_MOST_TEXT = 2000
_MOST_LINES = 200


class StepFailed(Exception):
    """A step's process ended without an outcome; the message gives the reason."""


def run_step(
    function: str,
    options: Mapping[str, Any],
    progress: Callable[[str], None],
    *,
    environ: Mapping[str, str],
    timeout_s: float,
) -> dict[str, Any]:
    """Run a step in its own process, and return its outcome. Raises StepFailed."""
    return run_process(
        [sys.executable, "-m", "mlx_backend.acceptance", function], options, progress, environ, timeout_s
    )


def run_process(
    command: Sequence[str],
    options: Mapping[str, Any],
    progress: Callable[[str], None],
    environ: Mapping[str, str],
    timeout_s: float,
) -> dict[str, Any]:
    """Run any command that reads options and writes lines like a step, and return its outcome. Raises StepFailed."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environ},
        start_new_session=True,  # Ctrl-C reaches only the kit, which ends the step with SIGTERM
    )
    noise: list[str] = []
    reader = threading.Thread(target=_read, args=(process, noise), daemon=True)
    reader.start()
    late = threading.Event()

    def end_late() -> None:
        late.set()
        end(process)

    timer = threading.Timer(timeout_s, end_late)
    timer.start()
    said: dict[str, Any] = {}
    try:
        assert process.stdin is not None and process.stdout is not None
        with contextlib.suppress(BrokenPipeError), process.stdin:
            process.stdin.write(json.dumps(dict(options)))
        with process.stdout:
            for line in process.stdout:
                said = _parse(line) or said
                if "progress" in said:
                    progress(str(said["progress"]))
        process.wait()
    finally:
        timer.cancel()
        end(process)
        reader.join(1.0)
    if "outcome" in said and process.returncode == 0:
        return dict(said["outcome"])
    raise StepFailed(_reason(process.returncode, said, noise, late.is_set(), timeout_s))


def _reason(code: int, said: Mapping[str, Any], noise: Sequence[str], is_late: bool, timeout_s: float) -> str:
    if is_late:
        return f"was ended after {timeout_s:.0f} s"
    if "error" in said:
        return str(said["error"])[:_MOST_TEXT]
    how = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
    return f"{how}: {''.join(noise)[-_MOST_TEXT:].strip()}".rstrip(": ")


def _parse(line: str) -> dict[str, Any]:
    with contextlib.suppress(ValueError):
        said = json.loads(line)
        if isinstance(said, dict):
            return said
    return {}


def _read(process: subprocess.Popen[str], noise: list[str]) -> None:
    assert process.stderr is not None
    with process.stderr:
        for line in process.stderr:
            noise.append(line)
            del noise[:-_MOST_LINES]


def end(process: subprocess.Popen[str], within_s: float = END_S) -> float | None:
    """End a process with SIGTERM, unless it has ended; return the seconds that took, or None if it had to be killed."""
    began_at = time.monotonic()
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(within_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return None
    return time.monotonic() - began_at


def measure_server(command: Sequence[str], wired_bytes: Callable[[], int], timeout_s: float) -> dict[str, Any]:
    """Start a server, wait until it serves, and end it with SIGTERM; record the machine's wired bytes each time.

    Returns an outcome like a step's. Raises StepFailed if the server does not start to serve.
    """
    before, began_at = wired_bytes(), time.monotonic()
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    timer = threading.Timer(timeout_s, lambda: end(process))
    timer.start()
    noise: list[str] = []
    try:
        assert process.stderr is not None
        while (line := process.stderr.readline()) and not _SERVING.search(line):
            noise.append(line)
        if not line:
            process.stderr.close()
            raise StepFailed(_reason(process.wait(), {}, noise, False, timeout_s))
        start_s, serving = time.monotonic() - began_at, wired_bytes()
        reader = threading.Thread(target=_read, args=(process, noise), daemon=True)
        reader.start()
        end_s = end(process)
        reader.join(1.0)
    finally:
        timer.cancel()
        end(process)
    after = wired_bytes()
    figures = {"start_s": start_s, "end_s": end_s, "wired_bytes": [before, serving, after]}
    return {"figures": figures, "checks": server_checks(process.returncode, end_s, before, serving, after)}


def server_checks(code: int, end_s: float | None, before: int, serving: int, after: int) -> list[dict[str, Any]]:
    """Check the exit code, and that wired memory is released: a tenth of it may belong to other programs."""
    checks = [{"name": "exit code after SIGTERM", "measured": code, "low": 0, "high": 0, "is_kept": code == 0}]
    if end_s is None:
        checks[0]["is_kept"] = False
    gained = serving - before
    if gained > 1e9:
        most = before + gained / 10
        checks.append({"name": "wired bytes after", "measured": after, "high": most, "is_kept": after <= most})
    return checks
