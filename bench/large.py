"""Faults that several users of one large model would meet: starving prompts, copied batches, waiting. In process.

python -m bench.large [--only starving,leaving,admission]

starving: TTFT of a prompt alone and beside one running stream, over a mock whose chunks have a fixed cost (weights are
read) as its decode steps have. leaving: time, and peak of memory, when rows leave a batch. admission: default chats
at once, by their worst case and by their expected length.
"""

from __future__ import annotations

import argparse
import asyncio
import time

from rich.console import Console
from rich.table import Table

from bench.large_admission import print_admission
from mlx_backend.api.interface import EngineConfig, GenerationRequest, MockConfig, SamplingParams
from mlx_backend.core.row import Row
from mlx_backend.core.step import Chunk, NewRow
from mlx_backend.engine.engine import DeviceEngine
from mlx_backend.runners.mock import MockRunner

DECODE_S = (0.005, 0.02, 0.075, 0.16, 0.5, 1.0)
TOKEN_S = 0.001
NUM_TOKENS = 256


def main() -> None:
    """Print a table for each part."""
    parser = argparse.ArgumentParser(prog="python -m bench.large", description=__doc__)
    parser.add_argument("--only", default="starving,leaving,admission")
    options = parser.parse_args()
    if "starving" in options.only:
        asyncio.run(_print_starving())
    if "leaving" in options.only:
        _print_leaving()
    if "admission" in options.only:
        print_admission()


class _Fixed(MockRunner):
    """The mock, whose chunks take as long as a decode step beside what their tokens take."""

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


def _print_leaving() -> None:
    import mlx.core as mx
    from mlx_lm.models.cache import KVCache

    from mlx_backend.kv_cache.batch import RowBatch

    num_layers, heads, dim, length, num_rows = 8, 8, 64, 2000, 16

    def row(name: int) -> Row:
        caches = [KVCache() for _ in range(num_layers)]
        for cache in caches:
            cache.update_and_fetch(mx.ones((1, heads, length, dim)), mx.ones((1, heads, length, dim)))
        mx.eval([cache.state for cache in caches])
        new = NewRow(
            id=name,
            prompt=name,
            ordinal=0,
            prompt_ids=(0,) * (length + 1),
            max_num_tokens=length + 100,
            sampling=SamplingParams(),
            key=0,
        )
        return Row.of(new, list(caches))

    table = Table("rows that leave, of 16", "ms", "peak over the batch, MB", "one row, MB")
    for name, leaving in (("the first", {0}), ("the last", {15}), ("half", set(range(0, 16, 2)))):
        batch = RowBatch([KVCache() for _ in range(num_layers)])
        rows = [row(place) for place in range(num_rows)]
        batch.set_rows(rows)
        mx.eval([array for cache in batch.caches for array in cache.arrays])
        mx.clear_cache()
        row_bytes, base = batch.nbytes / num_rows, mx.get_active_memory()
        mx.reset_peak_memory()
        began = time.perf_counter()
        batch.set_rows([each for place, each in enumerate(rows) if place not in leaving])
        mx.eval([array for cache in batch.caches for array in cache.arrays])
        took_ms = 1e3 * (time.perf_counter() - began)
        peak = max(mx.get_peak_memory() - base, 0) / 1e6
        table.add_row(name, f"{took_ms:.0f}", f"{peak:.1f}", f"{row_bytes / 1e6:.1f}")
        del batch, rows
    Console().print(table)


if __name__ == "__main__":
    main()
