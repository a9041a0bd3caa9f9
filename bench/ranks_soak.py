"""A soak over two ranks: mixed load with clients that leave; nothing hangs, and memory stays flat. Linux only."""

from __future__ import annotations

import argparse
import asyncio
import random
import re
import statistics
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

from bench.ranks_serving import Group, serving

_AT_ONCE = 6
_LEAVE = 0.3
"""Share of clients that leave in the middle of their answer."""
_SAMPLE_S = 2.0
_HANG_S = 120.0
"""Time without a byte after which a client counts as hanging."""
_WARM = 0.3
"""Share of the soak after which memory should stay flat."""
_MOST_GROWTH = 0.03
_WORDS = ("red", "fox", "stone", "seven", "river", "quiet", "lamp", "north")
_RESIDENT = re.compile(r"VmRSS:\s+(\d+) kB")


def run(options: argparse.Namespace) -> tuple[Any, bool]:
    """Print the outcome; return every sample, and whether memory stayed flat and nothing hung."""
    with serving("--prefix-cache-ram-gb", "0.01", "--scheduler-max-num-seqs", "4") as group:
        samples, ends = asyncio.run(_soak(group, 60 * options.minutes))
        code = group.process.poll()
    is_flat = _print_growth(samples)
    told = ", ".join(f"{number} {end}" for end, number in sorted(ends.items()))
    state = "runs" if code is None else f"ENDED with {code}"
    print(f"{sum(ends.values())} requests in {options.minutes:g} min: {told}; the server {state}")
    is_good = code is None and is_flat and not set(ends) - {"answered", "left"}
    return {"samples": samples, "ends": ends}, is_good


async def _soak(group: Group, duration_s: float) -> tuple[list[dict[str, float]], Counter[str]]:
    ends: Counter[str] = Counter()
    until, source = time.monotonic() + duration_s, random.Random(1)
    async with httpx.AsyncClient(base_url=group.url, trust_env=False, timeout=_HANG_S) as http:

        async def client() -> None:
            while time.monotonic() < until:
                ends[await _ask(http, source)] += 1

        clients = [asyncio.create_task(client()) for _ in range(_AT_ONCE)]
        samples = []
        while time.monotonic() < until and group.process.poll() is None:
            await asyncio.sleep(_SAMPLE_S)
            samples.append(await _sample(http, group))
        await asyncio.gather(*clients)
    return samples, ends


async def _ask(http: httpx.AsyncClient, source: random.Random) -> str:
    """Send one question, and return how it ended."""
    shared = " ".join(_WORDS) if source.random() < 0.5 else ""
    prompt = f"{shared} {' '.join(source.choices(_WORDS, k=source.randint(1, 60)))}"
    body: dict[str, Any] = {"prompt": prompt, "max_tokens": source.randint(1, 60), "stream": True}
    body |= source.choice([{"temperature": 0}, {"temperature": 1, "seed": 3}, {"n": 2}, {"ignore_eos": True}])
    if source.random() < 0.1:
        body["guided_regex"] = "[a-z ]{1,20}"
    leaves_after = source.randint(1, 20) if source.random() < _LEAVE else None
    num_lines = 0
    try:
        async with http.stream("POST", "/v1/completions", json=body) as response:
            if response.status_code != 200:
                return f"answered {response.status_code}"
            async for line in response.aiter_lines():
                num_lines += 1
                if '"error"' in line:
                    return "failed"
                if leaves_after is not None and num_lines > leaves_after:
                    return "left"
    except httpx.ReadTimeout:
        return "HUNG"
    except httpx.HTTPError as error:
        return type(error).__name__
    return "answered"


async def _sample(http: httpx.AsyncClient, group: Group) -> dict[str, float]:
    """Return the memory of the processes of both ranks, in MB."""
    found = {}
    for rank, pid in enumerate((group.process.pid, group.follower)):
        told = _RESIDENT.search(Path(f"/proc/{pid}/status").read_text())
        found[f"rank {rank} RSS"] = 0.0 if told is None else int(told[1]) / 1e3
    for model in (await http.get("/admin/models")).json()["data"]:
        for rank in model["ranks"]:
            found[f"rank {rank['rank']} device"] = rank["active_bytes"] / 1e6
    return found


def _print_growth(samples: list[dict[str, float]]) -> bool:
    """Print the growth of each figure after warm-up, by medians, and return whether all stayed flat."""
    warm = samples[int(_WARM * len(samples)) :]
    third = max(1, len(warm) // 3)
    print("| | MB when warm | MB in the end | growth |\n| --- | ---: | ---: | ---: |")
    is_flat = True
    for name in sorted(samples[-1]):
        first = statistics.median(sample[name] for sample in warm[:third])
        last = statistics.median(sample[name] for sample in warm[-third:])
        growth = last / first - 1
        is_flat &= growth <= _MOST_GROWTH or ("device" in name and last - first < 1)
        print(f"| {name} | {first:.1f} | {last:.1f} | {100 * growth:+.1f} % |")
    return is_flat
