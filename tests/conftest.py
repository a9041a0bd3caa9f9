"""Setup of all tests: hypothesis profiles, exact products, and a check that no test leaves a process behind."""

from __future__ import annotations

import gc
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.internal.conjecture import providers
from hypothesis.internal.constants_ast import Constants

# No deadline and no health check of slow data: an example's duration says more about the machine than about the code.
# The same examples every time, because random failures erode trust in a suite. `HYPOTHESIS=search` looks for new ones.
_ANYWHERE = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("pippin", _ANYWHERE, derandomize=True, database=None)
settings.register_profile("search", _ANYWHERE, max_examples=2000)
settings.load_profile("search" if os.environ.get("HYPOTHESIS") == "search" else "pippin")
# Hypothesis also tries the constants of modules imported so far, which depends on the order of the tests.
if os.environ.get("HYPOTHESIS") != "search" and hasattr(providers, "_get_local_constants"):
    providers._get_local_constants = Constants

# Tests compare tokens, and ranks of close probabilities: a GPU that multiplies with 10 mantissa bits swaps some.
os.environ.setdefault("MLX_ENABLE_TF32", "0")

_LINGER_S = 30.0


def pytest_configure() -> None:
    """Let child processes be interrupted: a suite that a shell runs in the background inherits an ignored SIGINT."""
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--shuffle", type=int, metavar="SEED", help="run the files, and the tests of each, in a random order"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    seed = config.getoption("--shuffle")
    if seed is not None:
        source = random.Random(seed)
        places = {path: source.random() for path in dict.fromkeys(item.path for item in items)}
        keys = {item: (places[item.path], source.random()) for item in items}
        items.sort(key=keys.__getitem__)


def pytest_collection_finish() -> None:
    """Exempt lasting objects from garbage collection: with all tests collected, each full one takes half a second."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    """Fail the test that leaves a child process behind, and kill the process: the next test starts clean."""
    before = _children()
    yield
    until = time.monotonic() + _LINGER_S
    while left := {pid: name for pid, name in _children().items() if pid not in before}:
        if time.monotonic() > until:
            for pid in left:
                os.kill(pid, signal.SIGKILL)
            pytest.fail(f"left running: {left}")
        time.sleep(0.01)


def _children() -> dict[int, str]:
    """Return child processes and their command lines; none without /proc.

    Excludes those that last as long as this process: the host of `tests.compiling`, and Python's own helper.
    """
    found = {}
    # A child is listed under the thread that started it, or the first one if that has ended. Python's threads only: MLX
    # keeps one per stream, hundreds after some modules, and reading each takes 20 ms a test.
    for thread in threading.enumerate():
        try:
            pids = Path(f"/proc/self/task/{thread.native_id}/children").read_text().split()
        except OSError:  # the thread has ended
            continue
        for pid in map(int, pids):
            try:
                command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
            except OSError:
                continue
            if "pippin-grammars" not in command and "multiprocessing.resource_tracker" not in command:
                found[pid] = command[:200]
    return found
