"""One engine, alone or over ranks, in its own process: python -m bench.ranks_engine FOLDER PARALLEL COUNT WHAT.

A process belongs to one group until it ends. It prints its result as one line of JSON.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from mlx_backend.api.interface import (
    EngineConfig,
    EngineStats,
    GenerationRequest,
    MemoryConfig,
    PrefixCacheConfig,
    RanksConfig,
    SamplingParams,
    TokenEvent,
)
from mlx_backend.engine.engine import DeviceEngine
from mlx_backend.factory import create_engine
from mlx_backend.planning.ranks_budget import RanksBudget
from mlx_backend.ranks.runner import RanksRunner

ROWS = (1, 4)
_PROMPT_TOKENS = 100
_TOKENS = 100
_AT_TOKENS = 16
"""Tokens of each answer after which the caches of all rows are compared with the plan."""
_LIMIT_GB = 4.0
_SETTLE_S = 3.0
"""Ranks are counted once a second."""


def measure(folder: Path, parallel: str, count: int, what: str) -> list[dict[str, Any]]:
    """Return a process's result: `pace`, a figure for each number of rows, or `memory`, of each rank."""
    command = [sys.executable, "-m", "bench.ranks_engine", str(folder), parallel, str(count), what]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    found: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Print the figures of one engine."""
    folder, parallel, count, what = sys.argv[1:]
    ranks = RanksConfig(count=int(count), parallel=parallel)  # type: ignore[arg-type]
    config = EngineConfig(
        model_path=folder,
        ranks=ranks,
        memory=MemoryConfig(limit_gb=_LIMIT_GB),
        prefix_cache=PrefixCacheConfig(enabled=False),
    )
    print(json.dumps(asyncio.run(_run(config, what))))


async def _run(config: EngineConfig, what: str) -> list[dict[str, Any]]:
    engine = create_engine(config)
    assert isinstance(engine, DeviceEngine)
    engine.start()
    while engine.model_info is None:
        if engine.failure is not None:
            raise engine.failure
        await asyncio.sleep(0.05)
    calls = _Calls(engine._runner)
    try:
        await _decode(engine, 1, 8)
        if what == "pace":
            return [await _decode_measured(engine, num_rows, calls) for num_rows in ROWS]
        await asyncio.sleep(_SETTLE_S)
        return await _held(engine, engine.stats())
    finally:
        engine.close()


class _Calls:
    """Messages to one other rank, and the time to send them to all; empty without ranks."""

    def __init__(self, runner: Any) -> None:
        self.took_s: list[float] = []
        self._runner = runner if isinstance(runner, RanksRunner) else None
        if self._runner is not None:
            mirror = self._runner._mirror

            def timed(name: str, **given: Any) -> None:
                began = time.perf_counter()
                mirror(name, **given)
                self.took_s.append(time.perf_counter() - began)

            self._runner._mirror = timed  # type: ignore[method-assign]

    @property
    def num(self) -> int:
        return 0 if self._runner is None else self._runner._peers[0].num_sent


async def _decode_measured(engine: DeviceEngine, num_rows: int, calls: _Calls) -> dict[str, Any]:
    calls.took_s.clear()
    before, steps = calls.num, engine.stats().num_steps
    times = await _decode(engine, num_rows, _TOKENS)
    pauses = [after - at for at, after in itertools.pairwise(times)]
    num_steps = engine.stats().num_steps - steps
    step_s = statistics.median(pauses)
    return {
        "num_rows": num_rows,
        "step_us": 1e6 * step_s,
        "tok_s": num_rows / step_s,
        "messages_per_step": (calls.num - before) / num_steps,
        "tell_us_per_message": 1e6 * statistics.median(calls.took_s) if calls.took_s else 0.0,
    }


async def _decode(engine: DeviceEngine, num_rows: int, num_tokens: int) -> list[float]:
    """Decode `num_tokens` in each of `num_rows` rows; return the times of the last row's tokens, once all decode."""
    times: dict[int, list[float]] = {row: [] for row in range(num_rows)}

    async def read(row: int) -> None:
        async for events in engine.submit([_request(row, num_tokens)]):
            times[row] += [time.perf_counter() for event in events if isinstance(event, TokenEvent)]

    await asyncio.gather(*(read(row) for row in times))
    began = max(found[0] for found in times.values())
    return [at for at in times[num_rows - 1] if at >= began]


def _request(row: int, num_tokens: int) -> GenerationRequest:
    prompt = tuple(1 + (7 * place + row) % 200 for place in range(_PROMPT_TOKENS))
    sampling = SamplingParams(temperature=0)
    return GenerationRequest(request_id=str(row), prompt_ids=prompt, max_tokens=num_tokens, sampling=sampling)


async def _held(engine: DeviceEngine, idle: EngineStats) -> list[dict[str, Any]]:
    """Return planned and held bytes of each rank, of weights, and of KV caches while the most rows decode."""
    info, budget = engine.model_info, engine._runner.budget
    if info is None or info.ranks is None or not isinstance(budget, RanksBudget):
        return []
    num_rows, num_tokens = ROWS[-1], 2000
    streams = [engine.submit([_request(row, num_tokens)]) for row in range(num_rows)]

    async def read(row: int) -> None:
        num = 0
        async for events in streams[row]:
            num += sum(isinstance(event, TokenEvent) for event in events)
            if num >= _AT_TOKENS and engine.stats().num_running == num_rows:
                return

    await asyncio.gather(*(read(row) for row in range(num_rows)))
    deadline = time.monotonic() + 30
    while (
        max(rank.kv_bytes for rank in engine.stats().ranks) != engine.stats().kv_bytes and time.monotonic() < deadline
    ):
        await asyncio.sleep(0.05)
    found, lengths = engine.stats().ranks, [_PROMPT_TOKENS + _AT_TOKENS] * num_rows
    assert all(rank.kv_bytes for rank in found)
    rows = [
        {
            "rank": rank.rank,
            "weights_planned": rank.weights_bytes,
            "weights_held": idle.ranks[rank.rank].active_bytes,
            "kv_planned": each.batch_bytes(lengths),
            "kv_held": found[rank.rank].kv_bytes,
        }
        for rank, each in zip(info.ranks.ranks, budget._budgets, strict=True)
    ]
    for stream in streams:
        await stream.aclose()
    return rows


if __name__ == "__main__":
    main()
