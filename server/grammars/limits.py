"""What one grammar process may use: processor time, memory and stack. The kernel holds it to them where it can.

Runs in grammar processes; imports the standard library alone.
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
"""Exit code of a process that has reached its memory limit and could still say so."""
_STACK_BYTES = 8 << 20
_WATCH_S = 0.01
_MAX_RSS_UNIT = 1 if sys.platform == "darwin" else 1024
"""Bytes in which `ru_maxrss` is counted: getrusage(2) of macOS and of Linux."""
_LIMITS = struct.Struct("<ddQQ")


@dataclass(frozen=True, slots=True)
class Limits:
    """`compile_s` and `step_s` are seconds of processor time, so that a busy machine refuses nothing."""

    compile_s: float
    step_s: float
    """For one step of one sequence, a mask included."""
    compile_bytes: int
    """Memory for the compilation, beyond what the host uses, which the process shares."""
    memory_bytes: int
    """... and for following the grammar afterwards, the compiled grammar included."""

    def pack(self) -> bytes:
        return _LIMITS.pack(self.compile_s, self.step_s, self.compile_bytes, self.memory_bytes)

    @classmethod
    def unpack(cls, packed: bytes) -> Limits:
        return cls(*_LIMITS.unpack(packed))


LIMITS_BYTES = _LIMITS.size


class Meter:
    """Holds this process to its limits, from when it is made. A limit that is reached ends the process.

    Time ends it by SIGPROF. Memory ends it by an allocation that fails (Linux: RLIMIT_AS), or by the exit code
    OUT_OF_MEMORY: macOS ignores RLIMIT_AS, so there a thread watches while a grammar compiles, and each step is
    followed by a look.
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
        """The most memory this process has had beside what it began with."""
        return _max_rss() - self._first_rss

    def look(self) -> None:
        """End the process where it has more memory than it may."""
        if self.used_bytes > self._most_bytes:
            os._exit(OUT_OF_MEMORY)

    @contextlib.contextmanager
    def compiling(self) -> Iterator[None]:
        """The limits of a compilation."""
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
        """The limits of so many steps."""
        with _processor_time(count * self.limits.step_s):
            yield
        self.look()

    def _watch(self, done: threading.Event) -> None:
        while not done.wait(_WATCH_S):
            self.look()


@contextlib.contextmanager
def _processor_time(seconds: float) -> Iterator[None]:
    """SIGPROF, which ends the process, after so much processor time within."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def prepare_child() -> None:
    """What a process does first after it was forked: nothing is collected, so that memory stays shared."""
    gc.disable()
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:  # Linux: the first to go
        file.write("1000")


def processor_s() -> float:
    """Processor time of this process so far."""
    return time.process_time()


def _lower(what: int, most: int) -> None:
    """Lower a soft limit to `most`, or to the hard one where that is less."""
    _, hard = resource.getrlimit(what)
    resource.setrlimit(what, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def _max_rss() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _MAX_RSS_UNIT


def _address_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()
