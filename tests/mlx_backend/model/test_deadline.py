"""A call that holds the GIL and does not return ends the process with a line; one that returns leaves nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import ctypes, sys
from mlx_backend.model.deadline import deadline
with deadline({within_s}, "pippin: too late; start it again"):
    ctypes.PyDLL(None).usleep({took_us})  # with the GIL
print("done")
"""


@pytest.mark.parametrize(
    ("within_s", "took_us", "code", "out", "err"),
    [(0.05, 20_000_000, 1, "", "pippin: too late; start it again\n"), (60, 1, 0, "done\n", "")],
)
def test_a_call_that_holds_the_gil_ends_in_time(within_s: float, took_us: int, code: int, out: str, err: str) -> None:
    script = SCRIPT.format(within_s=within_s, took_us=took_us)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (code, out, err)
