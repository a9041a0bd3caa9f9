"""Requests for an engine over several ranks or in one process: python -m tests.ranks_scenario FOLDER PARALLEL COUNT.

A process belongs to one group until it ends, so every run is a separate process; it prints its results as JSON.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

from mlx_backend.api.interface import (
    Engine,
    EngineConfig,
    KVCacheConfig,
    RanksConfig,
    SamplingParams,
    SchedulerConfig,
    TokenEvent,
)
from tests.engine_client import one, read_all, request, running, tokens
from tests.ladder import END, Ladder

DEADLINE_S = 300.0
LENGTHS = (1, 2, 5, 17, 40, 90)


def config(folder: Path, bits: int | None = None, **changes: Any) -> EngineConfig:
    """Return a configuration with few slots and short chunks: rows wait, join and leave while others decode."""
    scheduler = SchedulerConfig(max_num_seqs=4, max_chunk_tokens=32)
    return EngineConfig(
        model_path=str(folder),
        scheduler=scheduler,
        kv_cache=KVCacheConfig(bits=bits, group_size=bits and 32),
        **changes,
    )


async def drive(engine: Engine) -> dict[str, Any]:
    """Return the results of all kinds of requests: greedy, cached, seeded, several outputs, beside aborted ones."""
    info = engine.model_info
    assert info is not None, engine.failure
    source = random.Random(5)
    prompts = [[source.randrange(1, info.vocab_size) for _ in range(length)] for length in LENGTHS]
    found: dict[str, Any] = {"greedy": await asyncio.gather(*(one(engine, prompt, 10) for prompt in prompts))}
    found["again"] = await asyncio.gather(*(one(engine, [*prompt, 7], 6) for prompt in prompts))
    seeded = [
        SamplingParams(temperature=0.9, top_p=0.95, seed=place, frequency_penalty=0.3) for place in range(len(prompts))
    ]
    found["seeded"] = await asyncio.gather(
        *(one(engine, prompt, 8, sampling=each) for prompt, each in zip(prompts, seeded, strict=True))
    )
    found["several"] = await tokens(engine.submit([request(prompts[4], 6, n=3)]))
    found["kept"] = await asyncio.gather(*(_left(engine, prompt, place % 2) for place, prompt in enumerate(prompts)))
    found["led"] = await asyncio.gather(
        *(one(engine, prompt, 16, grammar=Ladder(length=5), stop_ids={END}) for prompt in prompts[:3]),
        *(one(engine, prompt, 8) for prompt in prompts[3:]),
    )
    scored, _ = await read_all(engine.submit([request(prompts[3], 2, num_prompt_logprobs=2)]))
    found["scored"] = [[token_id for token_id, _ in each.top] for each in scored[0].logprobs]
    found["cached"] = await _cached(engine, prompts[-1])
    return found


async def _left(engine: Engine, prompt: list[int], leaves: int) -> list[int]:
    """Return the tokens of a stream; only the first ones if it is aborted midway."""
    stream = engine.submit([request(prompt, 10)])
    got: list[int] = []
    async for events in stream:
        got += [event.token_id for event in events if isinstance(event, TokenEvent)]
        if leaves and len(got) >= 4:
            await stream.aclose()
            return got[:4]
    return got


async def _cached(engine: Engine, prompt: list[int]) -> bool:
    """Return whether any of the prompt is a prefix match."""
    stream = engine.submit([request(prompt, 4)])
    await tokens(stream)
    return stream.num_cached_tokens > 0


def alone(folder: Path, **changes: Any) -> dict[str, Any]:
    """Return the results of one process, run in this one."""

    async def run() -> dict[str, Any]:
        async with running(config(folder, **changes)) as engine:
            return await drive(engine)

    return asyncio.run(run())


def over_ranks(
    folder: Path, parallel: str, count: int = 2, bits: int | None = None, split: str = ""
) -> tuple[dict[str, Any], str]:
    """Return the results of `count` processes, and their logs."""
    command = [sys.executable, "-m", "tests.ranks_scenario", str(folder), parallel, str(count), str(bits or 0), split]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found, done.stderr


def main() -> None:
    """Run the scenario, and print the results."""
    folder, parallel, count, bits, split = sys.argv[1:]
    ranks = RanksConfig(count=int(count), parallel=parallel, split=split or None)  # type: ignore[arg-type]

    async def run() -> dict[str, Any]:
        async with running(config(Path(folder), int(bits) or None, ranks=ranks)) as engine:
            return await drive(engine)

    logging.basicConfig(level=logging.INFO)
    print(json.dumps(asyncio.run(run())))


if __name__ == "__main__":
    main()
