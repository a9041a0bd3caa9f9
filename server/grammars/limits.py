"""Limits of one grammar process: processor time, memory and stack. The kernel enforces them where possible.

Runs in grammar processes; imports only the standard library.
"""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import signal
import struct
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

OUT_OF_MEMORY = 3
"""Exit code of a process that reached its memory limit and could still report it."""
_STACK_BYTES = 8 << 20
_WATCH_S = 0.01
_MAX_RSS_UNIT = 1 if sys.platform == "darwin" else 1024
"""Bytes per unit of `ru_maxrss`: getrusage(2) of macOS and of Linux."""
_LIMITS = struct.Struct("<ddQQ")


@dataclass(frozen=True, slots=True)
class Limits:
    """`compile_s` and `step_s` are seconds of processor time, so that a busy machine causes no refusals."""

    compile_s: float
    step_s: float
    """Time for one step of one sequence, including a mask."""
    compile_bytes: int
    """Memory for the compilation, beyond the host's, which the process shares."""
    memory_bytes: int
    """Memory for following the grammar afterwards, including the compiled grammar."""

    def pack(self) -> bytes:
        return _LIMITS.pack(self.compile_s, self.step_s, self.compile_bytes, self.memory_bytes)

    @classmethod
    def unpack(cls, packed: bytes) -> Limits:
        return cls(*_LIMITS.unpack(packed))


LIMITS_BYTES = _LIMITS.size


class Meter:
    """Enforces the limits on this process from its creation. Reaching a limit ends the process.

    Time ends it by SIGPROF. Memory ends it by a failed allocation (Linux: RLIMIT_AS), or by the exit code
    OUT_OF_MEMORY: macOS ignores RLIMIT_AS, so there a thread checks while a grammar compiles, and every step is
    followed by a check.
    """

    def __init__(self, limits: Limits, *, has_address_limit: bool = sys.platform == "linux") -> None:
        self.limits = limits
        self._has_address_limit = has_address_limit
        self._first_rss = _max_rss()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        _lower(resource.RLIMIT_STACK, _STACK_BYTES)
        self._most_bytes = limits.memory_bytes
        if has_address_limit:
            self._first_address_bytes = _address_bytes()
            self._limit_memory(limits.memory_bytes)

    @property
    def used_bytes(self) -> int:
        """Peak memory of this process beyond its initial memory."""
        return _max_rss() - self._first_rss

    def look(self) -> None:
        """End the process if it exceeds its memory limit."""
        if self.used_bytes > self._most_bytes:
            os._exit(OUT_OF_MEMORY)

    @contextlib.contextmanager
    def compiling(self) -> Iterator[None]:
        """Apply the limits of a compilation."""
        self._limit_memory(self.limits.compile_bytes)
        done = threading.Event()
        if not self._has_address_limit:
            threading.Thread(target=self._watch, args=(done,), daemon=True).start()
        try:
            with _processor_time(self.limits.compile_s):
                yield
        finally:
            done.set()
        self._limit_memory(self.limits.memory_bytes)

    def _limit_memory(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        if self._has_address_limit:
            _, hard = resource.getrlimit(resource.RLIMIT_AS)
            resource.setrlimit(resource.RLIMIT_AS, (self._first_address_bytes + most_bytes, hard))

    @contextlib.contextmanager
    def steps(self, count: int) -> Iterator[None]:
        """Apply the limits of `count` steps."""
        with _processor_time(count * self.limits.step_s):
            yield
        self.look()

    def _watch(self, done: threading.Event) -> None:
        while not done.wait(_WATCH_S):
            self.look()


@contextlib.contextmanager
def _processor_time(seconds: float) -> Iterator[None]:
    """Send SIGPROF, which ends the process, after this much processor time in the block."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def prepare_child() -> None:
    """Prepare a forked process: garbage collection is off, so that memory stays shared."""
    gc.disable()
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:  # Linux: killed first
        file.write("1000")


def processor_s() -> float:
    """Return the processor time of this process so far."""
    return time.process_time()


def _lower(what: int, most: int) -> None:
    """Lower a soft limit to `most`, or to the hard limit if that is lower."""
    _, hard = resource.getrlimit(what)
    resource.setrlimit(what, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def _max_rss() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _MAX_RSS_UNIT


def _address_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()
