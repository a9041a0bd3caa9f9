"""A server over two ranks, started for a measurement: its processes, and clients in the middle of answers."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import httpx

from bench.servers import OFFLINE, ROOT, free_port

READY_S = 300.0
_POLL_S = 0.005
_HOOK = '''
import signal, sys
def strike(number, frame):
    """In a follower: fail in the next call. In rank 0: cut the connection to every other rank."""
    if is_follower:
        raise RuntimeError("told to fail")
    from mlx_backend.ranks.channel import Channel
    for frame in sys._current_frames().values():  # of the threads that read what other ranks say
        while frame is not None:
            channel = frame.f_locals.get("self")
            if type(channel) is Channel:
                channel._socket.shutdown(2)
                break
            frame = frame.f_back
is_follower = "join" in sys.orig_argv or "mlx_backend.follow" in sys.orig_argv
if is_follower or "serve" in sys.orig_argv:
    signal.signal(signal.SIGUSR1, strike)
'''
"""Module that every process of the server imports first: a signal makes it fail, for tests."""


@dataclass
class Group:
    """The processes of a server over two ranks. `joined`: rank 1, if the server did not start it itself."""

    process: subprocess.Popen[str]
    url: str
    log: Path
    joined: subprocess.Popen[str] | None = None
    pids: set[int] = field(default_factory=set)

    @property
    def follower(self) -> int:
        """Process id of rank 1."""
        if self.joined is not None:
            return self.joined.pid
        (found,) = [pid for pid in children(self.process.pid) if "mlx_backend.follow" in command_of(pid)]
        return found

    def note(self) -> None:
        """Record every process that belongs to it now."""
        for process in (self.process, self.joined):
            if process is not None:
                self.pids |= descendants(process.pid) | {process.pid}

    def left(self) -> list[int]:
        """Return the processes that have not ended."""
        return sorted(pid for pid in self.pids if is_alive(pid))


@contextmanager
def serving(*arguments: str, joins: bool = False) -> Iterator[Group]:
    """Serve the shipped model over two ranks; remaining processes are killed at the end.

    `joins`: by a hostfile and `pippin join`, as over two machines; otherwise the server starts rank 1.
    """
    port = free_port()
    with tempfile.TemporaryDirectory() as name:
        folder, joined = Path(name), None
        (folder / "sitecustomize.py").write_text(_HOOK)
        environ = {**os.environ, **OFFLINE, "PYTHONPATH": f"{folder}:{ROOT}"}
        log = folder / "log"

        def start(out: IO[str], *command: str) -> subprocess.Popen[str]:
            return subprocess.Popen(
                [sys.executable, "-m", "server", *command], stdout=out, stderr=out, text=True, env=environ, cwd=ROOT
            )

        serve = ["serve", "--port", str(port), *arguments]
        with log.open("w") as out:
            if joins:
                leader, key, given = _hostfile(folder)
                process = start(out, *serve, *given)
                group = Group(process, f"http://127.0.0.1:{port}", log)
                until(lambda: "pippin join" in log.read_text() or process.poll() is not None, READY_S)
                joined = group.joined = start(out, "join", leader, "--key", key)
            else:
                process = start(out, *serve, "--ranks", "2")
                group = Group(process, f"http://127.0.0.1:{port}", log)
        try:
            _await_ready(group)
            group.note()
            yield group
        finally:
            group.note()
            for pid in group.left():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()
            if joined is not None:
                joined.wait()


def _hostfile(folder: Path) -> tuple[str, str, list[str]]:
    """Return (address of rank 0, the key as @FILE, the arguments of `serve`) of two ranks on loopback."""
    leader, *ports = (free_port() for _ in range(3))
    file, key = folder / "hosts.json", folder / "key"
    file.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in ports]))
    key.touch(mode=0o600)
    key.write_text(secrets.token_hex(32))
    given = ["--hostfile", str(file), "--key", f"@{key}", "--ranks-port", str(leader)]
    return f"127.0.0.1:{leader}", f"@{key}", given


def _await_ready(group: Group) -> None:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        if group.process.poll() is not None:
            raise RuntimeError(f"the server ended with {group.process.returncode}: {group.log.read_text()[-2000:]}")
        with suppress(httpx.HTTPError):
            if httpx.get(f"{group.url}/ready", trust_env=False, timeout=30).status_code == 200:
                return
        time.sleep(0.1)
    raise RuntimeError("the server was not ready in time")


class Client(threading.Thread):
    """Client that reads a long answer. `ended_at` and `error`: time and error of the stream's end."""

    def __init__(self, url: str, prompt: str, max_tokens: int) -> None:
        super().__init__(daemon=True)
        self._url, self._prompt, self._max_tokens = url, prompt, max_tokens
        self.num_events, self.ended_at, self.error = 0, 0.0, ""
        self.start()

    def run(self) -> None:
        body = {"prompt": self._prompt, "max_tokens": self._max_tokens, "ignore_eos": True, "stream": True}
        try:
            with (
                httpx.Client(trust_env=False, timeout=600) as http,
                http.stream("POST", f"{self._url}/v1/completions", json=body) as response,
            ):
                for line in response.iter_lines():
                    self.num_events += line.startswith("data: {")
                    if '"error"' in line:
                        self.error = "an error event"
        except httpx.HTTPError as error:
            self.error = type(error).__name__  # the connection ended with the server
        self.ended_at = time.monotonic()


def until(condition: object, limit_s: float) -> float | None:
    """Wait until `condition()`; return the time, or None if it takes longer than `limit_s`."""
    assert callable(condition)
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            return None
        time.sleep(_POLL_S)
    return time.monotonic()


def command_of(pid: int) -> str:
    """Return a process's command line, empty if it has ended."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    return ""


def is_alive(pid: int) -> bool:
    """Return whether a process runs; a zombie does not."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def children(pid: int) -> set[int]:
    """Return the processes that a process has started."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                found.add(int(stat.parent.name))
    return found


def descendants(pid: int) -> set[int]:
    """Return the processes started by a process or by its descendants."""
    found = children(pid)
    return found.union(*(descendants(each) for each in found))
