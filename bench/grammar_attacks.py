"""The cost of hostile grammars for other requests.

    python -m bench.grammar_attacks [--model FOLDER] [--seconds 3] [--copies 8]

Over HTTP, for each hostile grammar: a server answers plain completions and two-word choices, one after the other, first
alone and then while several copies of the grammar, all different, are requested. The table has the medians and the
longest of both, the answers to the attack, and memory before and after it: of the server, and of the grammar
processes, which are kept for the next request as far as `grammars.memory_gb` allows.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

import httpx2
from rich.console import Console
from rich.table import Table

from bench.client import TIMEOUT_S, open_http
from bench.hostile_grammars import HELD, HOSTILE, Fields, body_of
from bench.servers import OURS, ROOT, RunningServer, run_server

POCKET = ROOT / "server" / "pocket"
CHAT = "/v1/chat/completions"
BYSTANDERS: dict[str, dict[str, Any]] = {
    "plain": {"prompt": "Once upon a time", "max_tokens": 8, "temperature": 0},
    "choice": {"prompt": "Yes or no?", "max_tokens": 8, "temperature": 0},
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.grammar_attacks", description=__doc__)
    parser.add_argument("--model", type=Path, default=POCKET, help="folder of an MLX model; else the pocket model")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--copies", type=int, default=8, help="of each hostile grammar, at once")
    options = parser.parse_args()
    with run_server(OURS, options.model) as server:
        asyncio.run(_measure(server, options.seconds, options.copies))


async def _measure(server: RunningServer, seconds: float, num_copies: int) -> None:
    table = Table("attack", "answers", "plain, ms", "choice, ms", "worst more, ms", "server, MB", "grammars, MB")
    async with open_http(server.url) as http:
        await _watch(http, seconds)
        for name, fields in {**HOSTILE, **HELD}.items():
            bodies = [_varied(fields, number) for number in range(num_copies)]  # differ, so that no cache has them
            before = _memory_mb(server.pid)
            calm = await _watch(http, seconds)
            attack = asyncio.create_task(_attack(http, bodies))
            busy = await _watch(http, seconds, attack)
            answers = await attack
            after = await _settled_mb(server.pid)
            worst = max(max(busy[each]) - median(calm[each]) for each in BYSTANDERS)
            said = ", ".join(f"{number} x {code}" for code, number in sorted(answers.items()))
            times = (f"{_ms(calm[each])} → {_ms(busy[each])}" for each in BYSTANDERS)
            memory = (f"{early:.0f} → {late:.0f}" for early, late in zip(before, after, strict=True))
            table.add_row(name, said, *times, f"{1e3 * worst:.0f}", *memory)
    Console(width=160).print(table)


async def _watch(
    http: httpx2.AsyncClient, seconds: float, until: asyncio.Task[Any] | None = None
) -> dict[str, list[float]]:
    """Return the times of bystanders' answers, for `seconds`, or as long as `until` runs if that is longer."""
    found: dict[str, list[float]] = {name: [] for name in BYSTANDERS}
    end = time.perf_counter() + seconds
    number = 0
    while time.perf_counter() < end or (until is not None and not until.done()):
        for name, body in BYSTANDERS.items():
            number += 1
            choice = {"guided_choice": [f"yes {number}", f"no {number}"]} if name == "choice" else {}
            began = time.perf_counter()
            answer = await http.post("/v1/completions", json={**body, **choice}, timeout=TIMEOUT_S)
            answer.raise_for_status()
            found[name].append(time.perf_counter() - began)
    return found


async def _attack(http: httpx2.AsyncClient, bodies: list[bytes]) -> Counter[str]:
    """Return the codes of the answers."""
    headers = {"Content-Type": "application/json"}
    asked = (http.post(CHAT, content=body, headers=headers, timeout=TIMEOUT_S) for body in bodies)
    return Counter(map(_code, await asyncio.gather(*asked)))


def _varied(fields: Fields, number: int) -> bytes:
    """Return a chat that requests the same grammar in another spelling."""
    asked = json.loads(body_of(fields))
    for name in ("guided_json", "guided_grammar"):
        if isinstance(asked.get(name), dict):
            asked[name]["title"] = f"number {number}"
        elif name in asked:
            asked[name] += f"\n// number {number}" if name == "guided_grammar" else " " * number
    return json.dumps(asked).encode()


def _code(answer: httpx2.Response) -> str:
    if answer.status_code == 200:
        return f"200 {answer.json()['choices'][0]['finish_reason']}"
    return f"{answer.status_code} {answer.json()['error']['code']}"


def _ms(times: list[float]) -> str:
    return f"{1e3 * median(times):.0f} ({1e3 * max(times):.0f})"


async def _settled_mb(pid: int) -> tuple[float, float]:
    await asyncio.sleep(0.5)
    return _memory_mb(pid)


def _memory_mb(pid: int) -> tuple[float, float]:
    """Return unshared memory of the server and of all its descendants; 0 without /proc."""
    try:
        below = [int(each) for each in os.listdir("/proc") if each.isdigit() and _has_ancestor(int(each), pid)]
    except OSError:
        return 0.0, 0.0
    return _private_mb(pid), sum(map(_private_mb, below))


def _has_ancestor(pid: int, ancestor: int) -> bool:
    while pid > 1:
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            return False
        pid = int(stat.rpartition(")")[2].split()[1])
        if pid == ancestor:
            return True
    return False


def _private_mb(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


if __name__ == "__main__":
    main()
