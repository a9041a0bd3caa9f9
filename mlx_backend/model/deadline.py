"""Deadline: ends this process with one line if a call that holds the GIL does not return in time. No MLX.

No Python thread can run meanwhile. faulthandler's can: it is not a Python thread, and ends the process with 1. The
traceback that it writes goes to a shell, which waits for it, and prints the line instead.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import subprocess
from collections.abc import Iterator

_SHELL = 'read -r first && { printf "%s\\n" "$0" >&2; exec cat >/dev/null; }'
"""Exits silently at the end of its input, when this process, or the call, ends."""


@contextlib.contextmanager
def deadline(within_s: float, line: str) -> Iterator[None]:
    """End the process with 1, and `line` on standard error, if the block takes longer."""
    reading, writing = os.pipe()
    with open(reading, "rb") as given:
        shell = subprocess.Popen(["/bin/sh", "-c", _SHELL, line], stdin=given, start_new_session=True)
    try:
        faulthandler.dump_traceback_later(within_s, exit=True, file=writing)
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        os.close(writing)
        shell.wait()
