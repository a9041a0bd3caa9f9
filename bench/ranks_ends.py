"""Shutdown of two ranks: a rank is killed, stopped, cut off or fails in the middle of answers. Linux only."""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from bench.ranks_serving import Client, Group, serving, until

_NUM_CLIENTS = 3
_MAX_TOKENS = 400
_LIMIT_S = 90.0
"""Time after which a client or a process counts as hanging."""

EVENTS: dict[str, tuple[str, Callable[[Group], None]]] = {
    "kill-follower": ("kill -9 of rank 1", lambda group: os.kill(group.follower, signal.SIGKILL)),
    "kill-leader": ("kill -9 of rank 0", lambda group: group.process.kill()),
    "stop-follower": ("SIGSTOP of rank 1", lambda group: os.kill(group.follower, signal.SIGSTOP)),
    "cut": ("the connection is cut", lambda group: os.kill(group.process.pid, signal.SIGUSR1)),
    "fail-follower": ("rank 1 fails alone", lambda group: os.kill(group.follower, signal.SIGUSR1)),
}


def run(options: argparse.Namespace) -> tuple[Any, bool]:
    """Print a line for each event; return every trial, and whether all of them ended."""
    print("| event | times | clients have their error, s | all processes have ended, s | exit codes | left behind |")
    print("| --- | ---: | ---: | ---: | --- | ---: |")
    trials: dict[str, list[dict[str, Any]]] = {}
    for name in options.events.split(","):
        trials[name] = [_try(name, options.model, joins=options.joins) for _ in range(options.times)]
        print(_row(name, trials[name]), flush=True)
    return trials, all(trial["is_over"] for found in trials.values() for trial in found)


def _try(name: str, model: str | None, *, joins: bool) -> dict[str, Any]:
    with serving(*filter(None, [model]), joins=joins) as group:
        clients = [Client(group.url, f"{word} upon a time", _MAX_TOKENS) for word in ("Once", "Twice", "Thrice")]
        assert len(clients) == _NUM_CLIENTS
        if until(lambda: all(client.num_events > 3 or client.error for client in clients), _LIMIT_S) is None:
            raise RuntimeError("the clients got no tokens")
        group.note()
        began = time.monotonic()
        EVENTS[name][1](group)
        told = until(lambda: all(client.ended_at for client in clients), _LIMIT_S)
        if group.joined is not None and name == "stop-follower":  # its machine continues, and rank 0 cannot kill it
            until(lambda: group.process.poll() is not None, _LIMIT_S)
            os.kill(group.joined.pid, signal.SIGCONT)
        ended = until(lambda: group.process.poll() is not None and not group.left(), _LIMIT_S)
        if ended is not None:
            group.process.wait()
        joined = None if ended is None or group.joined is None else group.joined.wait()
        return {
            "told_s": None if told is None else max(client.ended_at for client in clients) - began,
            "ended_s": None if ended is None else ended - began,
            "errors": Counter(client.error for client in clients),
            "code": group.process.returncode,
            "joined_code": joined,
            "left": len(group.left()),
            "is_over": told is not None and ended is not None and all(client.error for client in clients),
        }


def _row(name: str, trials: list[dict[str, Any]]) -> str:
    codes = ", ".join(sorted({_codes(trial) for trial in trials}))
    left = sum(trial["left"] for trial in trials)
    cells = [EVENTS[name][0], str(len(trials)), _spread(trials, "told_s"), _spread(trials, "ended_s"), codes, str(left)]
    return f"| {' | '.join(cells)} |"


def _codes(trial: dict[str, Any]) -> str:
    """Return the exit code of rank 0, and that of a rank that has joined."""
    joined = trial.get("joined_code")
    return str(trial["code"]) if joined is None else f"{trial['code']} and {joined}"


def _spread(trials: list[dict[str, Any]], key: str) -> str:
    """Return the median, the longest, and the number that hang, if any."""
    found = [trial[key] for trial in trials if trial[key] is not None]
    hangs = len(trials) - len(found)
    told = f"{statistics.median(found):.2f}, at most {max(found):.2f}" if found else "never"
    return f"{told}; {hangs} HANG" if hangs else told
