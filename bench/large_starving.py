"""TTFT of a prompt alone and beside one running stream, over a mock with the same fixed cost for chunks and steps.

A part of `python -m bench.large`. Weights are read for a chunk as for a decode step.
"""

from __future__ import annotations

import asyncio
import time

from rich.console import Console
from rich.table import Table

from mlx_backend.api.interface import EngineConfig, GenerationRequest, MockConfig
from mlx_backend.core.step import Chunk
from mlx_backend.engine.engine import DeviceEngine
from mlx_backend.runners.mock import MockRunner

DECODE_S = (0.005, 0.02, 0.075, 0.16, 0.5, 1.0)
TOKEN_S = 0.001
NUM_TOKENS = 256


def print_starving() -> None:
    """Print a row for each duration of a decode step."""
    asyncio.run(_print_starving())


class _Fixed(MockRunner):
    """Mock whose chunks take as long as a decode step plus the time of their tokens."""

    def _compute(self, chunk: Chunk) -> None:
        self._wait(self._pace.itl_s + TOKEN_S * chunk.num_tokens)


async def _print_starving() -> None:
    table = Table("decode step, s", "alone, s", "beside one stream, s", "ratio", "stall promised, s")
    for decode_s in DECODE_S:
        alone, beside, stall_s = await _starving(decode_s)
        table.add_row(f"{decode_s}", f"{alone:.2f}", f"{beside:.2f}", f"{beside / alone:.2f}", f"{stall_s:.2f}")
    Console().print(table)


async def _starving(decode_s: float) -> tuple[float, float, float]:
    config = EngineConfig(model_path="mock", backend="mock", mock=MockConfig(itl_s=decode_s, context=1 << 16))
    engine = DeviceEngine(config, _Fixed(config))
    engine.start()
    while engine.model_info is None:
        await asyncio.sleep(0.01)

    async def first_token(name: int, num_tokens: int) -> float:
        began = time.perf_counter()
        stream = engine.submit([_request(name, num_tokens, 4)])
        await anext(aiter(stream))
        await stream.aclose()
        return time.perf_counter() - began

    await first_token(1, NUM_TOKENS)
    alone = await first_token(2, NUM_TOKENS)
    running = engine.submit([_request(3, 8, 60_000)])
    for _ in range(5):
        await anext(aiter(running))
    draining = asyncio.create_task(_drain(running))
    beside = await first_token(4, NUM_TOKENS)
    stall_s = engine.stats().stall_s
    draining.cancel()
    await running.aclose()
    engine.close()
    return alone, beside, stall_s


async def _drain(stream: object) -> None:
    async for _ in stream:  # type: ignore[attr-defined]
        pass


def _request(name: int, num_tokens: int, max_tokens: int) -> GenerationRequest:
    prompt_ids = tuple((31 * name + 7 * place) % 250 for place in range(num_tokens))
    return GenerationRequest(request_id=str(name), prompt_ids=prompt_ids, max_tokens=max_tokens)
