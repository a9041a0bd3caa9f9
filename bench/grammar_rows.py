"""The cost of rows with a schema for the rows beside them.

    python -m bench.grammar_rows [--model FOLDER] [--rounds 8] [--tokens 150]

Over HTTP, eight chats at once: four plain ones, and beside them four others, plain or with a schema. Reports the tokens
per second of the plain four, with both ways alternating in one run, so that other load affects both; medians.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from pathlib import Path
from statistics import median
from typing import Any

import httpx2
from rich.console import Console
from rich.table import Table

from bench.client import TIMEOUT_S, open_http
from bench.servers import OURS, ROOT, run_server

POCKET = ROOT / "server" / "pocket"
NUM_ROWS = 4
ENTRY = {
    "type": "object",
    "properties": {
        "number": {"type": "integer", "minimum": 0, "maximum": 999},
        "word": {"type": "string", "maxLength": 12},
    },
    "required": ["number", "word"],
    "additionalProperties": False,
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.grammar_rows", description=__doc__)
    parser.add_argument("--model", type=Path, default=POCKET, help="folder of an MLX model; else the pocket model")
    parser.add_argument("--rounds", type=int, default=8, help="how often each way is measured")
    parser.add_argument("--tokens", type=int, default=150, help="of a plain answer")
    options = parser.parse_args()
    with run_server(OURS, options.model) as server:
        found = asyncio.run(_measure(server.url, options.rounds, options.tokens))
    _print(found)


async def _measure(url: str, num_rounds: int, num_tokens: int) -> dict[bool, list[float]]:
    """Return tokens per second of the plain rows, by whether the others have a schema. Rounds alternate the order."""
    found: dict[bool, list[float]] = {False: [], True: []}
    async with open_http(url) as http:
        for follow in (False, True):  # the first compiles the grammar and the kernels
            await _plain_tok_s(http, num_tokens, follow)
        for number in range(num_rounds):
            for follow in (False, True) if number % 2 else (True, False):
                found[follow].append(await _plain_tok_s(http, num_tokens, follow))
    return found


async def _plain_tok_s(http: httpx2.AsyncClient, num_tokens: int, follow: bool) -> float:
    """Return tokens per second of the four plain rows, from the first request to their last answer."""
    extra = _format(num_tokens) if follow else {}
    beside = [
        asyncio.create_task(_ask(http, num_tokens, temperature=1, seed=seed, **extra)) for seed in range(NUM_ROWS)
    ]
    started_s = time.perf_counter()
    plain = await asyncio.gather(*(_ask(http, num_tokens, temperature=0) for _ in range(NUM_ROWS)))
    plain_s = time.perf_counter() - started_s
    await asyncio.gather(*beside)
    return sum(plain) / plain_s


async def _ask(http: httpx2.AsyncClient, num_tokens: int, **fields: Any) -> int:
    """Run one chat to its number of tokens. Raises RuntimeError if it ends early."""
    body = {
        "messages": [{"role": "user", "content": "Tell me."}],
        "max_tokens": num_tokens,
        "ignore_eos": True,
        **fields,
    }
    answer = await http.post("/v1/chat/completions", json=body, timeout=TIMEOUT_S)
    num_made = int(answer.raise_for_status().json()["usage"]["completion_tokens"])
    if num_made != num_tokens:
        raise RuntimeError(f"an answer ended after {num_made} of {num_tokens} tokens")
    return num_made


def _format(num_tokens: int) -> dict[str, Any]:
    """Require as many entries as tokens, so that the length limit ends the answer, as it ends the plain ones."""
    schema = {"type": "array", "items": ENTRY, "minItems": num_tokens, "maxItems": num_tokens}
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "entries", "schema": schema}}}


def _print(found: dict[bool, list[float]]) -> None:
    num_rounds = len(found[True])
    table = Table("4 plain rows beside", "tok/s", "least", "most", caption=f"medians of {num_rounds} rounds")
    for follow, label in ((False, "4 plain rows"), (True, "4 rows with a schema")):
        speeds = found[follow]
        table.add_row(label, f"{median(speeds):,.0f}", f"{min(speeds):,.0f}", f"{max(speeds):,.0f}")
    console = Console(width=100)
    console.print(table)
    ratios = sorted(led / plain for plain, led in zip(found[False], found[True], strict=True))
    console.print(f"ratio, median of the rounds': {median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})")


if __name__ == "__main__":
    main()
