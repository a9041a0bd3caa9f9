"""The other ranks of a group on this machine: processes that rank 0 starts and ends."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Container

from mlx_backend.api.errors import ModelLoadError

FOLLOWER = "mlx_backend.follow"


class LocalRanks:
    """The processes of ranks 1 to `count` - 1. Their output goes to this process's standard error."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, leader: str, secret: str) -> None:
        """Start all of them, to join at `leader`, host:port, with the key derived from `secret`."""
        for rank in range(1, self._count):
            self._start(rank, leader, secret)

    def _start(self, rank: int, leader: str, secret: str) -> None:
        command = [sys.executable, "-m", FOLLOWER, leader, "--key", "@-", "--rank", str(rank)]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
        )  # a separate session: Ctrl-C is for rank 0, which ends the others after draining
        self._processes[rank] = process
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError), process.stdin:  # `check_running` notices one that has ended
            process.stdin.write(secret.encode() + b"\n")

    def check_running(self, joined: Container[int]) -> None:
        """Raise ModelLoadError if a process has ended before joining."""
        for rank, process in self._processes.items():
            if rank not in joined and process.poll() is not None:
                raise ModelLoadError(f"ranks: the process of rank {rank} ended with {process.returncode} as it started")

    def join(self, within_s: float) -> bool:
        """Return whether all have ended, now or within this many seconds."""
        deadline = time.monotonic() + within_s
        for process in self._processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
        return all(process.returncode is not None for process in self._processes.values())

    def end(self, within_s: float) -> None:
        """End those that do not end by themselves within this many seconds, as a stopped process does not."""
        if self.join(within_s):
            return
        for process in self._processes.values():
            if process.returncode is None:
                process.kill()
        self.join(within_s)
