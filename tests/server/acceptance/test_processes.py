"""Processes of steps and of a server, played by small programs: outcomes, ends, and what was said before them."""

from __future__ import annotations

import sys

import pytest

from server.acceptance.processes import StepFailed, measure_server, run_process, server_checks

STEP = """
import json, os, sys, signal, time
options = json.load(sys.stdin)
print("a library's noise", file=sys.stderr)
print("no JSON")
print(json.dumps({"progress": "half"}), flush=True)
"""
SERVER = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(int(sys.argv[1])))
print("loading", file=sys.stderr, flush=True)
print("12:00 serving pocket on http://127.0.0.1:1: ...", file=sys.stderr, flush=True)
while True:
    time.sleep(1)
"""


def run(end: str, timeout_s: float = 60.0) -> tuple[dict[str, object], list[str]]:
    said: list[str] = []
    return run_process([sys.executable, "-c", STEP + end], {"model": "m"}, said.append, {"X": "1"}, timeout_s), said


def test_an_outcome_with_what_was_said_on_the_way() -> None:
    end = 'print(json.dumps({"outcome": {"figures": {"x": os.environ["X"], **options}}}))'
    assert run(end) == ({"figures": {"x": "1", "model": "m"}}, ["half"])


@pytest.mark.parametrize(
    ("end", "said"),
    [
        ('print(json.dumps({"error": "RuntimeError: no"})); sys.exit(1)', "^RuntimeError: no$"),
        ("sys.exit(3)", "^ended with code 3: a library's noise$"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "^was ended by signal 9: a library's noise$"),
        ('print(json.dumps({"outcome": {}})); sys.stdout.flush(); os.abort()', "^was ended by signal 6"),
    ],
)
def test_an_end_without_one(end: str, said: str) -> None:
    with pytest.raises(StepFailed, match=said):
        run(end)


def test_a_step_that_takes_too_long_is_ended() -> None:
    with pytest.raises(StepFailed, match="was ended after 0 s"):
        run("time.sleep(600)", timeout_s=0.3)


@pytest.mark.parametrize("code", [0, 5])
def test_a_server_from_start_to_sigterm(code: int) -> None:
    sizes = iter([1 * 10**9, 9 * 10**9, 8 * 10**9])
    found = measure_server([sys.executable, "-c", SERVER, str(code)], lambda: next(sizes), 60.0)
    assert found["figures"]["wired_bytes"] == [1 * 10**9, 9 * 10**9, 8 * 10**9]
    assert [check["is_kept"] for check in found["checks"]] == [code == 0, False]


def test_a_server_that_does_not_come_to_serve() -> None:
    with pytest.raises(StepFailed, match="code 2: no model"):
        measure_server([sys.executable, "-c", "import sys; sys.stderr.write('no model'); sys.exit(2)"], lambda: 0, 60.0)


def test_what_was_wired_has_to_be_given_back() -> None:
    assert [check["is_kept"] for check in server_checks(0, 1.0, 10**9, 9 * 10**9, 10**9)] == [True, True]
    assert [check["is_kept"] for check in server_checks(0, None, 10**9, 10**9, 10**9)] == [False]
