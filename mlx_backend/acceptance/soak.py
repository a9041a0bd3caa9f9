"""A long run: two streams at a time while the prefix cache evicts, a load under which GPU drivers have panicked."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

from mlx_backend.acceptance.checks import Check, Options, Outcome
from mlx_backend.acceptance.streams import generate, running
from mlx_backend.api.interface import EngineConfig, MemoryConfig, PrefixCacheConfig

_STREAMS = 2
_CACHE_GB = 0.25
_REPORT_S = 30.0
_LEAST_SPEED = 0.8
"""Lowest speed of the last fifth over that of the first."""
_MOST_GROWTH = 1.1


def run(options: Options, report: Callable[[str], None]) -> Outcome:
    """Generate pairs of answers to prompts that share part of their beginning, for `soak_s` seconds."""
    if not options.soak_s:
        return Outcome(skipped="not asked for (--soak-minutes)")
    return asyncio.run(_run(options, report))


async def _run(options: Options, report: Callable[[str], None]) -> Outcome:
    config = EngineConfig(
        model_path=options.model,
        memory=replace(MemoryConfig(), wired=cast(Any, options.wired)),
        prefix_cache=PrefixCacheConfig(ram_gb=_CACHE_GB),
    )
    async with running(config) as engine:
        info = engine.model_info
        assert info is not None
        length = min(max(options.contexts), info.context_limit - 4 * options.num_tokens - 1)
        began_at = reported_at = time.monotonic()
        rounds: list[tuple[float, float, int]] = []
        while time.monotonic() - began_at < options.soak_s:
            prompts = [_prompt(length, len(rounds), row) for row in range(_STREAMS)]
            round_at = time.monotonic()
            streams = await generate(engine, prompts, 4 * options.num_tokens, uses_prefix_cache=True)
            now = time.monotonic()
            num_tokens = sum(len(stream.token_ids) for stream in streams)
            rounds.append((now - began_at, num_tokens / (now - round_at), engine.stats().active_bytes))
            if now - reported_at >= _REPORT_S:
                reported_at = now
                report(f"{now - began_at:.0f} s, {rounds[-1][1]:.1f} tok/s, {rounds[-1][2] / 1e9:.2f} GB")
        stats = engine.stats()
    return _judge(rounds, stats.num_failed, stats.prefix_cache.num_evicted)


def _prompt(length: int, round_number: int, row: int) -> tuple[int, ...]:
    """Return a prompt; half of it is one of three beginnings, so that part of it matches and the rest is new."""
    shared = [11 + (7 * i + round_number % 3) % 190 for i in range(length // 2)]
    own = [11 + (17 * i + 13 * round_number + 5 * row) % 190 for i in range(length - len(shared))]
    return (*shared, *own)


def _most_bytes(first: int) -> float:
    """Return the most bytes at the end: the prefix cache may have filled since the beginning."""
    return _MOST_GROWTH * first + _CACHE_GB * 1e9


def _judge(rounds: list[tuple[float, float, int]], num_failed: int, num_evicted: int) -> Outcome:
    fifth = max(1, len(rounds) // 5)
    first, last = rounds[:fifth], rounds[-fifth:]
    speed = [sum(each[1] for each in part) / len(part) for part in (first, last)]
    held = [max(each[2] for each in part) for part in (first, last)]
    figures = {
        "rounds": len(rounds),
        "seconds": rounds[-1][0],
        "tok_s": speed,
        "active_bytes": held,
        "num_evicted": num_evicted,
    }
    return Outcome(
        figures=figures,
        checks=[
            Check(name="requests that failed", measured=num_failed, high=0),
            Check(name="speed at the end", measured=speed[1] / speed[0], low=_LEAST_SPEED, unit="of the beginning's"),
            Check(name="memory at the end", measured=held[1], high=_most_bytes(held[0]), unit="bytes"),
        ],
    )
