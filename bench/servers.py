"""A server's process: start it on loopback, wait until it can answer, read its memory, end it by its id."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[1]
READY_S = 900.0
END_S = 120.0
OFFLINE = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


class StartError(Exception):
    """A process ended, or stayed silent, before its measurement; the message has the end of its log."""


@dataclass(frozen=True, slots=True)
class ServerKind:
    """Start command of one kind of server, and its readiness path."""

    name: str
    arguments: tuple[str, ...]
    """Arguments after `python -m`; `{model}` and `{port}` are filled in."""
    ready_path: str
    names_its_model: bool
    """Whether the model's name is read from `/v1/models`; otherwise it is the folder."""

    def having(self, *arguments: str, name: str | None = None) -> ServerKind:
        """Return the same kind with more arguments, and another name if given."""
        return replace(self, name=name or self.name, arguments=(*self.arguments, *arguments))

    def command(self, model: Path, port: int) -> list[str]:
        filled = (argument.format(model=model, port=port) for argument in self.arguments)
        return [sys.executable, "-m", *filled]


OURS = ServerKind(
    "ours", ("server", "serve", "{model}", "--port", "{port}", "--log-level", "warning"), "/ready", names_its_model=True
)
FULL = "full"
"""Name of ours with a KV cache in full precision, if ours has a quantized one."""
PEER = ServerKind(
    "peer",
    ("mlx_lm.server", "--model", "{model}", "--port", "{port}", "--log-level", "WARNING"),
    "/health",  # its /v1/models requires a download cache, which may be missing
    names_its_model=False,
)


def kinds(kv_bits: int | None, has_peer: bool) -> list[ServerKind]:
    """Return the servers to measure. With `kv_bits`, ours and the peer with such a KV cache, and ours in full."""
    if kv_bits is None:
        return [OURS, PEER] if has_peer else [OURS]
    quantized = [OURS.having("--kv-cache-bits", str(kv_bits)), OURS.having(name=FULL)]
    return [*quantized, PEER.having("--kv-bits", str(kv_bits), "--quantized-kv-start", "0")] if has_peer else quantized


@dataclass(frozen=True, slots=True)
class RunningServer:
    """A server that answers: its address, its name of the model, and its process."""

    url: str
    model: str
    pid: int

    def peak_bytes(self) -> int | None:
        """Return its peak resident memory so far; None without /proc."""
        try:
            return peak_bytes_in(Path(f"/proc/{self.pid}/status").read_text(encoding="ascii"))
        except OSError:
            return None


@contextmanager
def run_server(kind: ServerKind, model: Path) -> Iterator[RunningServer]:
    """Run a server of this kind, until the block ends. Raises StartError."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        process = subprocess.Popen(
            kind.command(model, port),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            text=True,
            cwd=ROOT,
            env={**os.environ, **OFFLINE},
        )
        try:
            if not _is_ready(process, url + kind.ready_path):
                log.seek(0)
                raise StartError(f"{kind.name} did not start: {log.read()[-2000:].strip()}")
            name = _model_name(url) if kind.names_its_model else str(model)
            yield RunningServer(url, name, process.pid)
        finally:
            end(process)


def end(process: subprocess.Popen[str]) -> None:
    """End one process, gently first."""
    process.terminate()
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def free_port() -> int:
    """Return a port of loopback that is free now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def peak_bytes_in(status: str) -> int | None:
    """Return the peak resident size in the text of a `/proc/<pid>/status`."""
    match = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    return int(match[1]) * 1024 if match else None


def _is_ready(process: subprocess.Popen[str], url: str) -> bool:
    deadline_s = time.monotonic() + READY_S
    with httpx.Client(trust_env=False, timeout=10) as http:
        while process.poll() is None and time.monotonic() < deadline_s:
            try:
                if http.get(url).status_code == 200:
                    return True
            except httpx.HTTPError:
                pass  # not listening yet
            time.sleep(0.1)
    return False


def _model_name(url: str) -> str:
    with httpx.Client(trust_env=False, timeout=10) as http:
        name: str = http.get(f"{url}/v1/models").raise_for_status().json()["data"][0]["id"]
        return name
