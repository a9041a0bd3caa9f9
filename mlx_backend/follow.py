"""One rank of a model that several processes share: python -m mlx_backend.follow HOST:PORT --rank N < KEY.

`pippin serve --ranks` starts them; they end with it. The key comes on standard input, in hexadecimal.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence

from mlx_backend.factory import create_rank_runner
from mlx_backend.ranks.channel import KEY_BYTES, ChannelError, connect
from mlx_backend.ranks.follower import LEADER_LOST, Follower

_CONNECT_S = 10.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Follow rank 0 until it leaves; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m mlx_backend.follow", description=main.__doc__)
    parser.add_argument("leader", help="where rank 0 listens, HOST:PORT")
    parser.add_argument("--rank", type=int, required=True)
    given = parser.parse_args(arguments)
    # A signal to all processes of a service is for rank 0: it drains, and then has this one leave.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    logging.basicConfig(level=logging.INFO, format=f"%(levelname)s rank {given.rank}: %(message)s")
    host, _, port = given.leader.rpartition(":")
    try:
        key = bytes.fromhex(sys.stdin.readline().strip())
        if len(key) != KEY_BYTES:
            raise ValueError(f"a key of {KEY_BYTES} bytes is needed on standard input")
        channel = connect(socket.create_connection((host, int(port)), _CONNECT_S), key)
        return Follower(channel, given.rank, create_rank_runner).run()
    except (OSError, ChannelError, ValueError) as error:
        print(f"rank {given.rank}: {error}", file=sys.stderr)
        return LEADER_LOST


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    sys.stderr.flush()
    os._exit(code)  # a thread may wait for a rank that is lost
