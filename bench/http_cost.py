"""`python -m bench.http_cost`: processor time of the server per token at 32 streams on the mock, API by API."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Annotated, Any

import httpx2
import typer

from tests.server_process import ServerProcess

STREAMS = 32
_CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 400, "stream": True}
APIS: dict[str, tuple[str, dict[str, Any], bytes]] = {
    "completions": ("/v1/completions", {"prompt": "hi", "max_tokens": 400, "stream": True}, b'"text":"'),
    "chat": ("/v1/chat/completions", _CHAT, b'"delta":{"content":"'),
    "messages": ("/v1/messages", _CHAT, b'"text_delta"'),
}
"""Path, body, and what each token's event has in it."""


def main(rounds: Annotated[int, typer.Option(min=1, help="How often to go through all.")] = 4) -> None:
    """Print microseconds per token of each API, a line for each."""
    server = ServerProcess("--backend", "mock", "--log-level", "info")
    try:
        asyncio.run(_measure(server.url(), server.process.pid, rounds))
    finally:
        server.process.terminate()
        server.process.wait()


async def _measure(url: str, pid: int, rounds: int) -> None:
    found: dict[str, list[float]] = {name: [] for name in APIS}
    async with httpx2.AsyncClient(base_url=url, timeout=300) as client:
        await _run(client, "chat")
        for _ in range(rounds):
            for name in APIS:
                before = _processor_s(pid)
                num_tokens = await _run(client, name)
                found[name].append(1e6 * (_processor_s(pid) - before) / num_tokens)
    for name, costs in found.items():
        sys.stdout.write(f"{name:12} {min(costs):6.1f} us per token at best; {[round(cost, 1) for cost in costs]}\n")


async def _run(client: httpx2.AsyncClient, name: str) -> int:
    """All streams at once; how many tokens came."""
    return sum(await asyncio.gather(*(_read(client, name) for _ in range(STREAMS))))


async def _read(client: httpx2.AsyncClient, name: str) -> int:
    path, body, mark = APIS[name]
    text = b""
    async with client.stream("POST", path, json=body) as answer:
        assert answer.status_code == 200, name
        async for chunk in answer.aiter_bytes():
            text += chunk
    return text.count(mark)


def _processor_s(pid: int) -> float:
    """Of a process so far (Linux)."""
    with open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    typer.run(main)
