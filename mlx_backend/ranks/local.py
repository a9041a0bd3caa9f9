"""The other ranks of a group on this machine: processes that rank 0 starts, finds again by a key, and ends."""

from __future__ import annotations

import contextlib
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable

from mlx_backend.api.errors import ModelLoadError
from mlx_backend.ranks import messages
from mlx_backend.ranks.channel import KEY_BYTES, Channel, ChannelError, accept

START_S = 120.0
"""A process that was started must have connected by then."""
FOLLOWER = "mlx_backend.follow"
_HOST = "127.0.0.1"
_POLL_S = 0.1


class LocalRanks:
    """The processes of ranks 1 to `count` - 1. Their output goes to this process's standard error."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, check: Callable[[], None]) -> dict[int, Channel]:
        """Start all, and return a channel to each. `check` is called while they are awaited, and may raise.

        Raises ModelLoadError.
        """
        key = secrets.token_bytes(KEY_BYTES)
        with socket.create_server((_HOST, 0)) as listener:
            listener.settimeout(_POLL_S)
            for rank in range(1, self._count):
                self._start(rank, listener.getsockname()[1], key)
            return self._await(listener, key, check)

    def _start(self, rank: int, port: int, key: bytes) -> None:
        command = [sys.executable, "-m", FOLLOWER, f"{_HOST}:{port}", "--rank", str(rank)]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
        )  # a session of its own: Ctrl-C is for rank 0, which ends the others when it has drained
        self._processes[rank] = process
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError), process.stdin:  # one that has ended is noticed by who awaits it
            process.stdin.write(key.hex().encode() + b"\n")

    def _await(self, listener: socket.socket, key: bytes, check: Callable[[], None]) -> dict[int, Channel]:
        found: dict[int, Channel] = {}
        deadline = time.monotonic() + START_S
        while len(found) < self._count - 1:
            check()
            self._check_running(found)
            if time.monotonic() > deadline:
                raise ModelLoadError(
                    f"ranks: {self._count - 1 - len(found)} ranks have not connected in {START_S:.0f} s"
                )
            try:
                sock, _ = listener.accept()
            except TimeoutError:
                continue
            try:
                channel = accept(sock, key)
                hello = messages.read(channel.receive())
            except (ChannelError, ValueError):
                continue  # something else has connected
            _check_versions(hello)
            found[int(hello["rank"])] = channel
        return found

    def _check_running(self, found: dict[int, Channel]) -> None:
        for rank, process in self._processes.items():
            if rank not in found and process.poll() is not None:
                raise ModelLoadError(f"ranks: the process of rank {rank} ended with {process.returncode} as it started")

    def join(self, within_s: float) -> bool:
        """Whether all have ended, now or in so many seconds."""
        deadline = time.monotonic() + within_s
        for process in self._processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
        return all(process.returncode is not None for process in self._processes.values())

    def end(self, within_s: float) -> None:
        """End those that do not end by themselves in so many seconds; a stopped process does not."""
        if self.join(within_s):
            return
        for process in self._processes.values():
            if process.returncode is None:
                process.kill()
        self.join(within_s)


def _check_versions(hello: dict[str, object]) -> None:
    own = messages.versions()
    if hello.get("versions") != own:
        raise ModelLoadError(
            f"ranks: rank {hello.get('rank')} has {hello.get('versions')}, this one {own}; make them equal"
        )


def free_addresses(count: int) -> tuple[str, ...]:
    """Return so many addresses of this machine at which nothing listens now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server((_HOST, 0))) for _ in range(count)]
        return tuple(f"{_HOST}:{each.getsockname()[1]}" for each in sockets)
