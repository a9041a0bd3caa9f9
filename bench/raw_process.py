"""The other end of `bench.raw`: its process, asked from here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from bench.servers import OFFLINE, ROOT, StartError, end
from server.client.record import Record


class RawProcess:
    """A process that has the model loaded and computes what it is asked, one thing at a time."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._read()  # that it is ready

    def generate(self, prompts: Sequence[str], max_tokens: int) -> list[Record]:
        """Answer all prompts at once; blocks until they are. Raises StartError when the process has ended."""
        return self._ask({"prompts": prompts, "max_tokens": max_tokens})

    def generate_after(self, prompt: str, max_tokens: int) -> list[Record]:
        """Answer a prompt in a cache that keeps what it shares with the one before. Raises StartError as above."""
        return self._ask({"continues": prompt, "max_tokens": max_tokens})

    def _ask(self, work: dict[str, Any]) -> list[Record]:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # reading notices it
            print(json.dumps(work), file=self._process.stdin, flush=True)
        return [Record(**{**fields, "stamps": tuple(fields["stamps"])}) for fields in self._read()["records"]]

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise StartError("the process of raw mlx-lm has ended")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def run_raw(model: Path) -> Iterator[RawProcess]:
    """Raw mlx-lm with the model loaded, until the block ends. Raises StartError."""
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.raw", str(model)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, **OFFLINE},
    )
    with process:
        try:
            yield RawProcess(process)
        finally:
            end(process)
