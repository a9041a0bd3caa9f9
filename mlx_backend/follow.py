"""The process of a rank other than 0: `pippin join`, or python -m mlx_backend.follow LEADER:PORT --key @FILE.

`pippin serve --ranks` starts such processes itself, and passes them the key on standard input.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from mlx_backend.factory import create_rank_runner
from mlx_backend.ranks.addresses import parse as parse
from mlx_backend.ranks.channel import MAGIC as MAGIC
from mlx_backend.ranks.channel import Channel, ChannelError, NotAuthenticated, connect
from mlx_backend.ranks.follower import LEADER_LOST, REFUSED, Follower
from mlx_backend.ranks.key import KeyFileError as KeyFileError
from mlx_backend.ranks.key import read_key as read_key

_CONNECT_S = 10.0
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
WRONG_USAGE = 2


def follow(
    leader: str, key: str, *, rank: int | None = None, find: Callable[[str], Path] = Path, is_started: bool = False
) -> int:
    """Join rank 0 and follow it; return the exit code, which gives the reason of the end.

    `key`: @FILE. `rank`: the one to become; None: the one that rank 0's hostfile gives to this host. `find`: finds the
    folder of a model by rank 0's name. `is_started`: by rank 0; then signals are rank 0's.
    """
    try:
        address, secret = parse(leader), read_key(key)
    except ValueError as error:
        return _say(str(error), WRONG_USAGE)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    # Blocked signals wait for a thread: Python's own handlers run between calls, and a computation may never end.
    signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    if not is_started:
        threading.Thread(target=_end_on_signal, name="signals", daemon=True).start()
    try:
        channel = greet(leader, address, secret)
    except CannotJoin as error:
        return _say(str(error), error.code)
    follower = Follower(channel, rank, create_rank_runner, find=find)
    _leave.append(follower.leave)
    try:
        return follower.run()
    except ChannelError as error:
        return _say(f"rank 0 at {leader} is lost: {error}", LEADER_LOST)


class CannotJoin(Exception):
    """Reason in one line why there is no connection to rank 0, and what to do. `code`: the exit code."""

    def __init__(self, line: str, code: int) -> None:
        super().__init__(line)
        self.code = code


def greet(leader: str, address: tuple[str, int], secret: bytes) -> Channel:
    """Connect to rank 0, and prove possession of the key. Raises CannotJoin."""
    try:
        return connect(socket.create_connection(address, _CONNECT_S), secret)
    except NotAuthenticated as error:
        raise CannotJoin(f"rank 0 at {leader}: {error}", REFUSED) from error
    except ChannelError as error:
        advice = "give the address that rank 0 logs, while it waits for ranks"
        line = f"what listens at {leader} does not greet as rank 0 does: {error}; {advice}"
        raise CannotJoin(line, LEADER_LOST) from error
    except OSError as error:
        line = f"rank 0 at {leader} cannot be reached: {error.strerror or error}; start it, and then this again"
        raise CannotJoin(line, LEADER_LOST) from error


def end(code: int) -> None:
    """End the process at once: a thread may wait for a lost rank, and the interpreter would wait for that thread."""
    logging.shutdown()
    sys.stderr.flush()
    os._exit(code)


_leave: list[Callable[[str], None]] = []


def _end_on_signal() -> None:
    """End on a signal, even in the midst of a computation, and report the reason to rank 0."""
    number = signal.sigwait(_ENDING)
    for leave in _leave:
        leave(f"its process was asked to end ({signal.Signals(number).name})")
    end(0)


def _say(line: str, code: int) -> int:
    print(f"pippin: {line}", file=sys.stderr)
    return code


def main(arguments: Sequence[str] | None = None) -> int:
    """Follow the rank 0 that has started this process; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m mlx_backend.follow", description=__doc__)
    parser.add_argument("leader", help="where rank 0 listens, HOST:PORT")
    parser.add_argument("--key", required=True, help="@FILE that holds the key; @-: a line of standard input")
    parser.add_argument("--rank", type=int, help="the rank to become")
    given = parser.parse_args(arguments)
    return follow(given.leader, given.key, rank=given.rank, is_started=given.key == "@-")


if __name__ == "__main__":
    end(main())
