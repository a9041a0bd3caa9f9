"""`python -m bench.http_cost`: processor time of the server for each streamed token, API by API, over the mock.

The streams run at once, and what is read of them is counted and not looked at; time is the server process's own, so
that others at work on the machine change little. The mock computes nothing: what is measured is text, JSON and HTTP.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from statistics import median
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer

from bench.servers import end, free_port

_HI = {"messages": [{"role": "user", "content": "hi"}]}
_STEP_S = 0.01
"""The time of a step of the mock: each token is a write of its own, as with a model."""
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")

APIS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "completions": ("/v1/completions", {"prompt": "hi"}),
    "chat completions": ("/v1/chat/completions", _HI),
    "ollama chat": ("/api/chat", _HI),
    "ollama generate": ("/api/generate", {"prompt": "hi"}),
}
"""Path and body of each, but for the number of tokens."""


def main(
    streams: Annotated[int, typer.Option(help="Streams at once.")] = 32,
    tokens: Annotated[int, typer.Option(help="Tokens of each, at the most.")] = 400,
    rounds: Annotated[int, typer.Option(help="How often each API is measured; the median counts.")] = 3,
) -> None:
    """Measure what a streamed token costs the server, in each API. Linux."""
    with _mock_server() as (pid, url):
        found: dict[str, list[float]] = {name: [] for name in APIS}
        for measured in range(-1, rounds):
            for name, (path, body) in APIS.items():
                cost = asyncio.run(_cost(pid, url, path, _limited(path, body, tokens), streams))
                if measured >= 0:  # the first time warms up
                    found[name].append(cost)
    base = median(found["chat completions"])
    print("| API | µs a token | beside chat completions |\n| --- | --- | --- |")
    for name, costs in found.items():
        print(f"| {name} | {median(costs):.1f} ({min(costs):.1f} to {max(costs):.1f}) | {median(costs) / base:.2f} |")


def _limited(path: str, body: Mapping[str, Any], tokens: int) -> bytes:
    limit = {"options": {"num_predict": tokens}} if path.startswith("/api/") else {"max_tokens": tokens}
    return json.dumps({**body, **limit, "stream": True}).encode()


async def _cost(pid: int, url: str, path: str, body: bytes, streams: int) -> float:
    """Microseconds of the server's processor time a token."""
    before = _processor_s(pid)
    numbers = await asyncio.gather(*(_read(url, path, body) for _ in range(streams)))
    return 1e6 * (_processor_s(pid) - before) / sum(numbers)


async def _read(url: str, path: str, body: bytes) -> int:
    """The number of the answer's pieces, of which a token makes one: events, or lines below /api."""
    at = urlsplit(url)
    reader, writer = await asyncio.open_connection(at.hostname, at.port)
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    answer = await reader.read()
    writer.close()
    return answer.count(b'"done":false' if path.startswith("/api/") else b"data: {")


def _processor_s(pid: int) -> float:
    """User and system time of a process, all threads."""
    with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * _TICK_S


@contextmanager
def _mock_server() -> Iterator[tuple[int, str]]:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    options = ("--backend", "mock", "--mock-itl-s", str(_STEP_S), "--port", str(port), "--log-level", "error")
    command = [sys.executable, "-m", "server", "serve", *options]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, text=True)
    try:
        while not _is_ready(url):
            if process.poll() is not None:
                raise SystemExit("the server did not start")
            time.sleep(0.1)
        yield process.pid, url
    finally:
        end(process)


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/ready") as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


if __name__ == "__main__":
    typer.run(main)
