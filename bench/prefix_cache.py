"""Savings of the prefix cache: warm starts from memory and after a restart, shared prompts, chats and agents.

    python -m bench.prefix_cache [--shape llama] [--rounds 3] [--tokens 1024]

Over HTTP. Warm: a prompt with a cached beginning, ours from memory, ours after a restart from disk, and mlx_lm.server,
in turn in one run. Bytes: 50 conversations behind one system prompt. Turns: a chat with the pocket model and an agent's
trace, with the share of each turn's prompt that was computed before.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import httpx2
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.table import Table

from bench.checkpoint import SHAPES
from bench.client import TIMEOUT_S, Client, open_http
from bench.prompts import Prompts, open_prompts
from bench.servers import OURS, PEER, ROOT, RunningServer, ServerKind, run_server

POCKET = ROOT / "server" / "pocket"
NUM_CONVERSATIONS = 50
NUM_WARM = 5
SYSTEM = "You are a friendly helper. You answer in short sentences. "
QUESTIONS = (
    "My name is Anna.",
    "How many r's are in strawberry?",
    "Which is larger, 9.8 or 9.11?",
    "What is 17 plus 25?",
    "How many e's are in cheese?",
    "What is my name?",
)
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": f"{verb}_{noun}",
            "description": f"Can {verb} a {noun} that is given by its path, and tells what came of it.",
            "parameters": {
                "type": "object",
                "properties": {"path": {"type": "string", "description": f"path of the {noun}"}},
                "required": ["path"],
            },
        },
    }
    for verb in ("read", "write", "list")
    for noun in ("file", "folder")
]
"""Six tools, which an agent sends with every request."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.prefix_cache", description=__doc__)
    parser.add_argument("--shape", choices=[*SHAPES], default="llama")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=1024, help="of the shared beginning")
    options = parser.parse_args()
    console = Console(width=110)
    with tempfile.TemporaryDirectory(prefix="pippin-bench-") as name:
        model = Path(name) / options.shape
        subprocess.run([sys.executable, "-m", "bench.checkpoint", str(model), options.shape], check=True)
        _print_warm(console, [_warm_round(model, number, options.tokens) for number in range(options.rounds)])
    with run_server(OURS, POCKET) as server:
        asyncio.run(_shared(console, server))
        asyncio.run(_chat(console, server))
        asyncio.run(_agent(console, server))


# --- warm starts


def _warm_round(model: Path, number: int, num_tokens: int) -> dict[str, float]:
    """Return the seconds to the first token, by server and source."""
    prompts = open_prompts(model, seed=number)
    shared = prompts.make(num_tokens)
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="pippin-prefixes-") as folder:
        ours = OURS.having("--prefix-cache-dir", folder)
        found["ours, cold"], found["ours, from memory"] = _ttfts(ours, model, prompts, shared)
        found["ours, after a restart"] = _ttfts(ours, model, prompts, shared)[0]
    found["mlx_lm.server, cold"], found["mlx_lm.server, from memory"] = _ttfts(PEER, model, prompts, shared)
    return found


def _ttfts(kind: ServerKind, model: Path, prompts: Prompts, shared: str) -> tuple[float, float]:
    """Return (TTFT of the first prompt that begins with `shared`, the median of the next ones)."""

    async def ask(server: RunningServer) -> list[float]:
        async with open_http(server.url) as http:
            client = Client(http, server.model)
            await client.complete(prompts.make(256), 16)  # compiles everything
            records = [await client.complete(shared + prompts.make(8), 8) for _ in range(1 + NUM_WARM)]
        if any(record.ttft_s is None for record in records):
            raise RuntimeError(f"{kind.name} did not answer")
        return [record.ttft_s or 0.0 for record in records]

    with run_server(kind, model) as server:
        first, *others = asyncio.run(ask(server))
    return first, median(others)


def _print_warm(console: Console, rounds: list[dict[str, float]]) -> None:
    table = Table("TTFT", "ms, median", "each round", caption="known beginning, 8 tokens of its own")
    for label in rounds[0]:
        values = [1000 * found[label] for found in rounds]
        table.add_row(label, f"{median(values):,.1f}", ", ".join(f"{value:,.1f}" for value in values))
    console.print(table)
    for label, base in (
        ("ours, from memory", "mlx_lm.server, from memory"),
        ("ours, after a restart", "mlx_lm.server, from memory"),
        ("ours, after a restart", "ours, from memory"),
    ):
        console.print(f"{label} / {base}: {median(found[label] / found[base] for found in rounds):.3f}")


# --- stored bytes


async def _shared(console: Console, server: RunningServer) -> None:
    """Print the bytes of one conversation, and of fifty with the same system prompt."""
    system = {"role": "system", "content": SYSTEM * 23}
    async with open_http(server.url) as http:
        first = await _ask(http, [system, {"role": "user", "content": "What is 17 plus 25?"}])
        one_bytes = await _ram_bytes(http)
        asked = (f"What is {10 + number} plus {number}?" for number in range(1, NUM_CONVERSATIONS))
        await asyncio.gather(*(_ask(http, [system, {"role": "user", "content": question}]) for question in asked))
        all_bytes = await _ram_bytes(http)
    console.print(
        f"{NUM_CONVERSATIONS} conversations behind one system prompt, {first['prompt_tokens']} tokens each: "
        f"{all_bytes / 1e6:.2f} MB, one {one_bytes / 1e6:.2f} MB; {all_bytes / one_bytes:.2f} times"
    )


async def _chat(console: Console, server: RunningServer) -> None:
    """Ask questions one after the other, with the model's own answers between them."""
    messages: list[dict[str, Any]] = [{"role": "system", "content": SYSTEM}]
    table = Table("chat: turn", "prompt tokens", "not computed again", "share")
    async with open_http(server.url) as http:
        for number, question in enumerate(QUESTIONS, 1):
            messages.append({"role": "user", "content": question})
            usage = await _ask(http, messages)
            messages.append({"role": "assistant", "content": usage["content"]})
            table.add_row(str(number), *_share(usage))
    console.print(table)


async def _agent(console: Console, server: RunningServer) -> None:
    """Send system prompt, tools, and a history that grows by a call and its result each turn."""
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": "Find out which of the files is the largest."},
    ]
    table = Table("agent: turn", "prompt tokens", "not computed again", "share")
    async with open_http(server.url) as http:
        for number in range(1, 13):
            table.add_row(str(number), *_share(await _ask(http, messages, tools=TOOLS)))
            call = {"name": "read_file", "arguments": f'{{"path": "notes/{number}.txt"}}'}
            messages.append(
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [{"id": f"call_{number}", "type": "function", "function": call}],
                }
            )
            result = f"The file has {97 * number} lines. " * 4
            messages.append({"role": "tool", "tool_call_id": f"call_{number}", "content": result})
    console.print(table)


async def _ask(http: httpx2.AsyncClient, messages: list[dict[str, Any]], **fields: Any) -> dict[str, Any]:
    """Return one chat's usage, and its content."""
    body = {"messages": messages, "temperature": 0, "max_tokens": 100, **fields}
    answer = await http.post("/v1/chat/completions", json=body, timeout=TIMEOUT_S)
    answer.raise_for_status()
    found = answer.json()
    return {**found["usage"], "content": found["choices"][0]["message"]["content"]}


def _share(usage: dict[str, Any]) -> tuple[str, str, str]:
    total, cached = usage["prompt_tokens"], (usage["prompt_tokens_details"] or {}).get("cached_tokens", 0)
    return str(total), str(cached), f"{cached / total:.0%}"


async def _ram_bytes(http: httpx2.AsyncClient) -> float:
    await asyncio.sleep(0.5)  # rows are stored when they leave, one turn after their answer
    text = (await http.get("/metrics")).text
    return next(value for name, tier, value in _samples(text) if name == "pippin_prefix_cache_bytes" and tier == "ram")


def _samples(text: str) -> Iterator[tuple[str, str | None, float]]:
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            yield sample.name, sample.labels.get("tier"), sample.value


if __name__ == "__main__":
    main()
