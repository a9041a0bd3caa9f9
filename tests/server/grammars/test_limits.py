"""The limits of a grammar process, each reached in a process of its own."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from server.grammars.limits import OUT_OF_MEMORY

PROGRAM = """
import os, signal, sys
from server.grammars.limits import Limits, Meter, prepare_child
pid = os.fork()  # as the host does it: after an exec alone, getrusage still knows the memory of the process before
if pid:
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code < 0:
        os.kill(os.getpid(), -code)
    os._exit(code)
prepare_child()
limits = Limits(compile_s={seconds}, step_s={seconds}, compile_bytes=64 << 20, memory_bytes=128 << 20)
meter = Meter(limits, has_address_limit={has_address_limit})
{work}
print("fine")
"""
BURN = "while True: pass"
HOARD = "kept = [bytearray(b'x') * (1 << 20) for _ in range({number})]"


def ended(work: str, *, has_address_limit: bool = sys.platform == "linux", seconds: float = 20.0) -> tuple[int, str]:
    """(exit code, or minus the signal; what was printed). `seconds`: of processor time."""
    program = PROGRAM.format(work=work, has_address_limit=has_address_limit, seconds=seconds)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout


def within(context: str, work: str) -> str:
    return f"with meter.{context}:\n    {work}"


@pytest.mark.parametrize("context", ["compiling()", "steps(1)"])
def test_processor_time_ends_it(context: str) -> None:
    assert ended(within(context, BURN), seconds=0.2) == (-signal.SIGPROF, "")


@pytest.mark.parametrize("context", ["compiling()", "steps(1)"])
def test_waiting_is_no_processor_time(context: str) -> None:
    """So that a machine that is busy with others ends nothing."""
    assert ended(within(context, "import time; time.sleep(0.5)"), seconds=0.2) == (0, "fine\n")


def test_what_comes_after_is_not_timed() -> None:
    burn = "import time; end = time.process_time() + 0.4\nwhile time.process_time() < end: pass"
    assert ended(within("compiling()", "pass") + f"\n{burn}", seconds=0.2) == (0, "fine\n")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not limit addresses")
def test_an_allocation_beyond_the_limit_fails() -> None:
    code, printed = ended(within("compiling()", HOARD.format(number=200)))
    assert (code, printed) == (1, "")  # MemoryError
    assert ended(within("compiling()", HOARD.format(number=20))) == (0, "fine\n")
    assert ended(within("compiling()", "pass") + "\n" + HOARD.format(number=90)) == (0, "fine\n")


def test_without_a_limit_of_addresses_a_thread_watches() -> None:
    """As on macOS. The work lets the thread run, as llguidance does while it compiles."""
    hoard = "import time; kept = [(bytearray(b'x') * (1 << 20), time.sleep(0.001)) for _ in range(2000)]"
    assert ended(within("compiling()", hoard), has_address_limit=False) == (OUT_OF_MEMORY, "")
    assert ended(within("compiling()", HOARD.format(number=20)), has_address_limit=False) == (0, "fine\n")


def test_without_a_limit_of_addresses_each_step_is_looked_at() -> None:
    assert ended(within("steps(1)", HOARD.format(number=200)), has_address_limit=False) == (OUT_OF_MEMORY, "")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_process_that_crashes_leaves_no_core() -> None:
    assert ended("print(open('/proc/self/limits').read().split('core file size')[1].split()[0])")[1] == "0\nfine\n"
