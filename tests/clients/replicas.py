"""examples/replicas/serve.sh as a user starts it: the router of .venv-router, and replicas before which it stands."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).parents[2]
ROUTER = ROOT / ".venv-router" / "bin"
SERVE = ROOT / "examples" / "replicas" / "serve.sh"
DEADLINE_S = 120.0


class Replicas:
    """The router at `url`; `workers` are the addresses of what is behind it."""

    def __init__(self, process: subprocess.Popen[bytes], url: str, workers: list[str]) -> None:
        self.process = process
        self.url = url
        self.workers = workers

    def kill(self, worker: str, number: int = signal.SIGKILL) -> None:
        """Send a signal to one replica, by its process id."""
        port = worker.rpartition(":")[2]
        found = subprocess.run(
            ["pgrep", "-P", str(self.process.pid), "-f", f"port {port}"], capture_output=True, text=True, check=True
        )
        os.kill(int(found.stdout), number)

    def stats(self, worker: str) -> dict[str, Any]:
        """The engine's counters, as a replica reports them itself."""
        (model,) = httpx.get(f"{worker}/health").json()["models"]
        stats: dict[str, Any] = model["stats"]
        return stats

    def num_ready(self) -> int:
        try:
            return int(httpx.get(f"{self.url}/readiness").json().get("healthy_workers", 0))
        except httpx.HTTPError:
            return 0


@contextmanager
def replicas(home: Path, *arguments: str, workers: tuple[str, ...] = (), **variables: str) -> Iterator[Replicas]:
    """Ready replicas behind a router; ended afterwards."""
    assert ROUTER.is_dir(), "the router is not there; `make clients` sets it up"
    port, metrics_port, *ports = _free_ports()
    urls = list(workers) or [f"http://127.0.0.1:{port}" for port in ports]
    with socket.create_server(("127.0.0.1", 0)) as way_out:
        proxy = f"http://127.0.0.1:{way_out.getsockname()[1]}"
        environment = {
            "PATH": f"{ROUTER}:{os.environ['PATH']}",
            "HOME": str(home),  # no caches, keys or settings of the user's
            "http_proxy": proxy,
            "https_proxy": proxy,
            "all_proxy": proxy,
            "PORT": str(port),
            "METRICS_PORT": str(metrics_port),
            "FIRST_PORT": str(ports[0]),
            "WORKERS": " ".join(workers),
            **variables,
        }
        process = subprocess.Popen([str(SERVE), *arguments], env=environment, cwd=home)
        try:
            started = Replicas(process, f"http://127.0.0.1:{port}", urls)
            wait_until(lambda: started.num_ready() == len(urls), process)
            yield started
        finally:
            process.terminate()
            assert process.wait(DEADLINE_S) == 0
        way_out.setblocking(False)
        try:
            way_out.accept()
        except BlockingIOError:
            return
        raise AssertionError("the proxy was asked")


def wait_until(holds: Callable[[], bool], process: subprocess.Popen[bytes] | None = None) -> None:
    """Raises AssertionError after the deadline, or when the process has ended."""
    deadline = time.monotonic() + DEADLINE_S
    while not holds():
        assert process is None or process.poll() is None, "it has ended"
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _free_ports() -> list[int]:
    """Four that are free, the last two in a row."""
    while True:
        sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
        ports = [each.getsockname()[1] for each in sockets]
        try:
            with socket.create_server(("127.0.0.1", ports[-1] + 1)):
                return [*ports, ports[-1] + 1]
        except OSError:
            continue
        finally:
            for each in sockets:
                each.close()
