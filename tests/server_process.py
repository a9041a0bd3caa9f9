"""`pippin serve` as a separate process, as a user starts it: for exit codes, signals and memory."""

from __future__ import annotations

import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

DEADLINE_S = 120.0
_SERVING = re.compile(r" serving .* on (http://[\d.:]+):")


class ServerProcess:
    """A started process; `lines` contains its stderr so far."""

    def __init__(self, *arguments: str, memory_bytes: int | None = None, log: Path | None = None) -> None:
        """`memory_bytes`: limit of address space, for children too; None: no limit. `log`: its log file, if any."""
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-m", "server", "serve", *arguments, "--port", "0"]
        if memory_bytes is not None:
            command = ["bash", "-c", f'ulimit -v {memory_bytes // 1024}; exec "$@"', "bash", *command]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        self._log = log
        self.lines: list[str] = []
        self._urls: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as stream:
            for line in stream:
                self.lines.append(line.rstrip())
                if found := _SERVING.search(line):
                    self._urls.put(found[1])
        self._urls.put(None)

    def url(self) -> str:
        """Return the URL, once it serves."""
        if self._log is not None:
            return self._logged_url(self._log)
        url = self._urls.get(timeout=DEADLINE_S)
        assert url is not None, self.lines
        return url

    def _logged_url(self, log: Path) -> str:
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline and self.process.poll() is None:
            if log.exists() and (found := _SERVING.search(log.read_text())):
                return found[1]
            time.sleep(0.01)
        raise AssertionError(self.lines)

    def wait(self) -> int:
        """Return the exit code, after reading every line."""
        code = self.process.wait(DEADLINE_S)
        self._reader.join(DEADLINE_S)
        return code

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def rss_bytes(self) -> int:
        """Return the resident memory; Linux only."""
        found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{self.process.pid}/status").read_text())
        assert found is not None
        return int(found[1]) * 1024


@contextmanager
def serving(
    *arguments: str, memory_bytes: int | None = None, log: Path | None = None
) -> Iterator[tuple[ServerProcess, httpx.Client]]:
    """Yield a ready process and a client of it; end the process afterwards."""
    server = ServerProcess(*arguments, memory_bytes=memory_bytes, log=log)
    try:
        with httpx.Client(base_url=server.url(), timeout=DEADLINE_S) as client:
            yield server, client
    finally:
        if server.process.poll() is None:
            server.stop()


def live_stats(client: httpx.Client) -> dict[str, Any]:
    """Return the engine's counters from /health."""
    (model,) = client.get("/health").json()["models"]
    stats: dict[str, Any] = model["stats"]
    return stats
