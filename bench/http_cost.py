"""Cost of a token for the server in each API: `python -m bench.http_cost [--streams 32] [--tokens 400] [--rounds 3]`.

Streams of a mock, whose text costs nothing to compute. The figure is the processor time of the server's process, which
other programs disturb less than elapsed time; the APIs take turns, round by round.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx2

from bench.client import TIMEOUT_S, open_http
from tests.server_process import serving

TEXT = "Once upon a time"
MESSAGES = [{"role": "user", "content": TEXT}]
APIS: Mapping[str, tuple[str, dict[str, Any], str, bytes]] = {
    "completions": ("/v1/completions", {"prompt": TEXT}, "max_tokens", b'"text":"'),
    "chat completions": ("/v1/chat/completions", {"messages": MESSAGES}, "max_tokens", b'"delta":{"content":"'),
    "messages": ("/v1/messages", {"messages": MESSAGES}, "max_tokens", b'"text_delta"'),
    "responses": ("/v1/responses", {"input": TEXT}, "max_output_tokens", b'"type":"response.output_text.delta"'),
    "ollama chat": ("/api/chat", {"messages": MESSAGES}, "num_predict", b'"done":false'),
    "ollama generate": ("/api/generate", {"prompt": TEXT}, "num_predict", b'"done":false'),
}
"""By name: path, body, name of the token limit, and the bytes that mark a token's event."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with serving("--backend", "mock") as (server, client):
        url = str(client.base_url).rstrip("/")
        found = asyncio.run(_measure(url, server.process.pid, options.streams, options.tokens, options.rounds))
    base = statistics.median(found["chat completions"])
    for name, costs in found.items():
        middle = statistics.median(costs)
        spread = f"{min(costs):.0f} to {max(costs):.0f}"
        print(f"{name:18} {middle:6.1f} us per token ({spread}), {middle / base:.2f} x chat completions")


async def _measure(url: str, pid: int, streams: int, tokens: int, rounds: int) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {name: [] for name in APIS}
    async with open_http(url) as http:
        for turn in range(rounds + 1):
            for name, (path, body, limit, mark) in APIS.items():
                limited = {"options": {limit: tokens}} if path.startswith("/api/") else {limit: tokens}
                asked = {**body, **limited, "stream": True}
                before = _processor_s(pid)
                num_tokens = sum(await asyncio.gather(*(_read(http, path, asked, mark) for _ in range(streams))))
                if turn:  # the first round warms up
                    found[name].append((_processor_s(pid) - before) / num_tokens * 1e6)
    return found


async def _read(http: httpx2.AsyncClient, path: str, body: Mapping[str, Any], mark: bytes) -> int:
    """Read a stream to its end; return its number of tokens."""
    async with http.stream("POST", path, json=body, timeout=TIMEOUT_S) as answer:
        answer.raise_for_status()
        return (b"".join([part async for part in answer.aiter_raw()])).count(mark)


def _processor_s(pid: int) -> float:
    """Return the processor time of the process so far, all threads together (Linux)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
