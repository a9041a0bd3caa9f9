"""Cost of repeating every call on another rank: bytes of a message, and time to write and to read it."""

from __future__ import annotations

import socket
import statistics
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from mlx_backend.api.interface import SamplingParams
from mlx_backend.core.step import Chunk, NewRow, StepPlan
from mlx_backend.ranks import messages
from mlx_backend.ranks.channel import KEY_BYTES, Channel, accept, connect

_ROUNDS = 7
_CALLS = 30


def print_ranks() -> None:
    """Print the table."""
    calls: dict[str, dict[str, Any]] = {
        "step, 1 row": {"plan": StepPlan(decodes=(1,))},
        "step, 32 rows": {"plan": StepPlan(decodes=tuple(range(100_000, 100_032)))},
        "chunk of 2048 tokens": {
            "chunk": Chunk(prompt=1, start=0, token_ids=tuple(range(50_000, 52_048)), num_prompt_tokens=9_999)
        },
        "row of 16,384 tokens joins": {"plan": StepPlan(new_rows=(_row(16_384),), decodes=(1,))},
    }
    here, there = _pair()
    print("| call | bytes | to say, µs | to read, µs | there, µs |\n| --- | --- | --- | --- | --- |")
    for name, given in calls.items():
        payload = messages.write({"call": "start", **given})
        say = _best(partial(messages.write, {"call": "start", **given}))
        read, go = _best(partial(messages.read, payload)), _best(partial(_go, here, there, payload))
        print(f"| {name} | {len(payload)} | {say:.0f} | {read:.0f} | {go:.0f} |")
    here.close()
    there.close()


def _row(num_tokens: int) -> NewRow:
    ids = tuple(range(50_000, 50_000 + num_tokens))
    return NewRow(id=1, prompt=1, ordinal=0, prompt_ids=ids, max_num_tokens=20_000, sampling=SamplingParams(), key=0)


def _go(here: Channel, there: Channel, payload: bytes) -> None:
    """Send one frame to the other end, with tags made and compared."""
    here.send(payload)
    there.receive()


def _best(call: Callable[[], object]) -> float:
    """Return the median µs of the best of several rounds."""
    rounds = []
    for _ in range(_ROUNDS):
        took = []
        for _ in range(_CALLS):
            began = time.perf_counter()
            call()
            took.append(time.perf_counter() - began)
        rounds.append(statistics.median(took))
    return min(rounds) * 1e6


def _pair() -> tuple[Channel, Channel]:
    key = bytes(KEY_BYTES)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        sock, _ = listener.accept()
    for each in (client, sock):  # holds a whole frame: both ends are in this thread
        each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        each.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    found: list[Channel] = []
    thread = threading.Thread(target=lambda: found.append(accept(sock, key)))
    thread.start()
    here = connect(client, key)
    thread.join()
    return here, found[0]
