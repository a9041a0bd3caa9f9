"""The client side of `bench.raw`: starts its process and sends it work."""

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
    """A process with a loaded model that runs one task at a time."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._read()  # waits until it is ready

    def generate(self, prompts: Sequence[str], max_tokens: int) -> list[Record]:
        """Generate from all prompts at once; blocks until done. Raises StartError if the process has ended."""
        return self._ask({"prompts": prompts, "max_tokens": max_tokens})

    def generate_after(self, prompt: str, max_tokens: int) -> list[Record]:
        """Generate in a cache that keeps the prefix shared with the previous prompt. Raises StartError as above."""
        return self._ask({"continues": prompt, "max_tokens": max_tokens})

    def _ask(self, work: dict[str, Any]) -> list[Record]:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # reading reports it
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
    """Run raw mlx-lm with the model loaded, until the block ends. Raises StartError."""
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
