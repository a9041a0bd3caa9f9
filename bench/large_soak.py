"""Answers under constant preemption: thousands of requests within a budget that is always too small.

python -m bench.large_soak [--requests 10000] [--backend mlx,mock] [--most-tokens 1000] [--limit-gb X] [--seed 1]
                           [--kind llama] [--speculation]

Requests are drawn from a pool, greedy or seeded, with one continuation or several; some leave midway. Every answer is
compared with that of the same request alone. At the end no rows, prompts or blocks may be left, and as much memory be
allocated as before. With speculation each request predicts its answer, with errors: whatever is verified and rejected,
answers stay the same, and so do those that resume from the blocks of such rows.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import random
import resource
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlx_backend.api.interface import (
    EngineConfig,
    EngineStats,
    GenerationRequest,
    MemoryConfig,
    MockConfig,
    MockText,
    PrefixCacheConfig,
    SamplingParams,
    SchedulerConfig,
    SpeculationConfig,
    TokenEvent,
)
from mlx_backend.engine.engine import DeviceEngine
from mlx_backend.engine.expected_length import ExpectedLength
from mlx_backend.engine.reservations import Unit, choose_leaving
from mlx_backend.engine.scheduler import Scheduler
from mlx_backend.kv_cache import allocation
from mlx_backend.runners.mock import MockRunner

LIMIT_GB = {"mlx": 0.007, "mock": 0.00128}
_AT_ONCE = 24
_MOST_TOKENS = 1000
_VOCABULARY = 256
_AHEAD = 8
"""Tokens of room kept ahead of a sequence, at most: room is always short."""
_PREEMPT_EVERY = 30
"""Average number of steps between preemptions without need."""
_LEAVE = 0.1
"""Share of requests with a client that leaves."""

Answer = dict[int, list[int]]


class _Short(ExpectedLength):
    """Estimate that every answer ends at once: admits as many as fit now, which must leave again as they grow."""

    def expect(self, max_tokens: int, num_written: int = 0) -> int:
        return min(max_tokens, num_written + 1)


@dataclass(frozen=True)
class Report:
    """Outcome of a soak. Bytes are those allocated on the device, before the engine and after it."""

    num_requests: int
    num_different: int
    stats: EngineStats
    leftovers: dict[str, int]
    bytes_before: int
    bytes_after: int
    rss_warm: int
    rss_end: int
    took_s: float


def main() -> None:
    """Print the outcome; exit with 1 if an answer differs, or something is left."""
    parser = argparse.ArgumentParser(prog="python -m bench.large_soak", description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--backend", default="mlx,mock")
    parser.add_argument("--most-tokens", type=int, default=_MOST_TOKENS, help="of an answer")
    parser.add_argument("--limit-gb", type=float, help="memory of the engine, the model's weights included")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kind", default="llama", help="of tiny model")
    parser.add_argument("--speculation", action="store_true", help="draft as much as there is room for")
    options = parser.parse_args()
    is_good = True
    for backend in options.backend.split(","):
        with tempfile.TemporaryDirectory() as folder:
            config = config_of(backend, Path(folder), options.limit_gb, options.kind)
            if options.speculation:
                config = replace(config, speculation=SpeculationConfig(kind="ngram", max_slowdown=100.0))
            report = asyncio.run(soak(config, options.requests, options.seed, most_tokens=options.most_tokens))
        stats = report.stats
        print(
            f"{backend}: {report.num_requests} requests in {report.took_s:.0f} s, {report.num_different} answers differ"
        )
        print(f"  {stats.num_preemptions} preemptions, {stats.num_recomputed_tokens} tokens computed again")
        if stats.speculation.num_steps:
            print(f"  {stats.speculation.num_steps} steps with drafts: {stats.speculation.drafted}")
        print(f"  finished {stats.num_finished}, aborted {stats.num_aborted}, failed {stats.num_failed}")
        print(f"  left: {report.leftovers}; device bytes {report.bytes_before} before, {report.bytes_after} after")
        print(f"  RSS {report.rss_warm >> 20} MiB after a tenth, {report.rss_end >> 20} MiB in the end", flush=True)
        is_good &= not report.num_different and not any(report.leftovers.values())
        is_good &= report.bytes_after <= report.bytes_before
    sys.exit(0 if is_good else 1)


def config_of(backend: str, folder: Path, limit_gb: float | None = None, kind: str = "llama") -> EngineConfig:
    """Return an engine whose budget, unless given, holds a few requests of the pool at their full length."""
    is_mock = backend == "mock"
    if not is_mock:
        from tests.tiny_models import write_model

        folder = write_model(folder / kind, kind)
    return EngineConfig(
        model_path="mock" if is_mock else str(folder),
        backend="mock" if is_mock else "mlx",
        memory=MemoryConfig(limit_gb=limit_gb or LIMIT_GB[backend], reserve_gb=0),
        scheduler=SchedulerConfig(max_num_seqs=16),
        mock=MockConfig(context=2048),
        prefix_cache=PrefixCacheConfig(chunk_tokens=32),
    )


def build_pool(num_requests: int, seed: int, most_tokens: int = _MOST_TOKENS) -> list[GenerationRequest]:
    """Return different requests: few tokens end an answer, so that most are short and some reach `max_tokens`."""
    source, pool = random.Random(seed), []
    for place in range(num_requests):
        prompt_ids = tuple(source.randrange(1, _VOCABULARY) for _ in range(int(source.lognormvariate(3, 1)) % 300 + 1))
        sampling = SamplingParams(temperature=0) if place % 3 == 0 else SamplingParams(temperature=1.0, seed=place)
        stop_ids = frozenset(source.randrange(1, _VOCABULARY) for _ in range(source.choice((0, 1, 1, 2, 8))))
        n = source.choice((1, 1, 1, 2, 3))
        pool.append(
            GenerationRequest(
                request_id=str(place),
                prompt_ids=prompt_ids,
                max_tokens=source.choice((1, 30, most_tokens, most_tokens)) // (n if stop_ids else 2 * n) or 1,
                n=n,
                sampling=sampling,
                stop_ids=stop_ids,
                tenant=source.choice(("", "a", "b")),
                mock=MockText(outputs=tuple(_text(source, most_tokens) for _ in range(n))),
            )
        )
    return pool


def _predicting(request: GenerationRequest, answer: Sequence[int], seed: int) -> GenerationRequest:
    """Return a request that predicts its answer, with its own share of errors."""
    source = random.Random(f"{seed} {request.request_id}")
    share = source.choice((0.0, 0.05, 0.2, 0.5, 1.0))
    wrong = [(t + 1) % _VOCABULARY if source.random() < share else t for t in answer]
    return replace(request, prediction_ids=tuple(wrong))


def _text(source: random.Random, most_tokens: int) -> tuple[int, ...]:
    length = min(most_tokens, int(source.lognormvariate(5, 1.5)) + 1)
    return tuple(source.randrange(_VOCABULARY) for _ in range(length))


async def soak(
    config: EngineConfig, num_requests: int, seed: int, num_different: int = 200, most_tokens: int = _MOST_TOKENS
) -> Report:
    """Serve `num_requests` from a pool of `num_different`, many at once, and compare."""
    bytes_before = _device_bytes(config)
    pool = build_pool(min(num_different, num_requests), seed, most_tokens)
    unbounded = replace(
        config, memory=MemoryConfig(), scheduler=replace(config.scheduler, max_num_seqs=max(each.n for each in pool))
    )
    async with _running(unbounded) as engine:
        alone = [await _ask(engine, each) for each in pool]
    if config.speculation.max_drafts:
        pool = [_predicting(each, answer[0], seed) for each, answer in zip(pool, alone, strict=True)]
    began = time.perf_counter()
    ahead, allocation.SOON_TOKENS = allocation.SOON_TOKENS, _AHEAD
    async with _running(config) as engine:
        num_wrong, stats, leftovers, rss_warm = await _serve(engine, pool, alone, num_requests, random.Random(seed))
    allocation.SOON_TOKENS = ahead
    del engine
    return Report(
        num_requests=num_requests,
        num_different=num_wrong,
        stats=stats,
        leftovers=leftovers,
        bytes_before=bytes_before,
        bytes_after=_device_bytes(config),
        rss_warm=rss_warm,
        rss_end=_rss(),
        took_s=time.perf_counter() - began,
    )


async def _serve(
    engine: DeviceEngine,
    pool: Sequence[GenerationRequest],
    alone: Sequence[Answer],
    num_requests: int,
    source: random.Random,
) -> tuple[int, EngineStats, dict[str, int], int]:
    """Return the number of answers that differ, the engine's counters, leftovers, and RSS after a tenth."""
    assert engine._loop is not None
    scheduler = engine._loop.scheduler
    scheduler.lengths = _Short()
    scheduler.overflow = _preempting(scheduler, source.random())  # type: ignore[method-assign, assignment]
    places, num_wrong, num_done, rss_warm = asyncio.Semaphore(_AT_ONCE), 0, 0, 0

    async def ask(place: int, leaves_after: int | None) -> None:
        nonlocal num_wrong, num_done, rss_warm
        async with places:
            found = await _ask(engine, pool[place], leaves_after)
        is_same = found == alone[place] if leaves_after is None else _begins(alone[place], found)
        num_wrong += not is_same
        num_done += 1
        if num_done == max(1, num_requests // 10):
            rss_warm = _rss()

    asked = []
    for _ in range(num_requests):
        leaves = source.random() < _LEAVE
        asked.append(ask(source.randrange(len(pool)), source.randint(0, 200) if leaves else None))
    await asyncio.gather(*asked)
    while engine.stats().kv_bytes or engine.stats().num_running:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)
    return num_wrong, engine.stats(), _leftovers(engine), rss_warm


def _preempting(scheduler: Scheduler, seed: float) -> Callable[[int], tuple[list[Unit], int]]:
    """Return an `overflow` that sometimes preempts without need; the state of what leaves is kept or dropped."""
    source, overflow = random.Random(seed), scheduler.overflow

    def preempt(held_bytes: int) -> tuple[list[Unit], int]:
        leaving, free_bytes = overflow(held_bytes)
        if leaving or source.randrange(_PREEMPT_EVERY):
            return leaving, free_bytes
        fits = iter([False] * source.randint(1, 3))
        leaving, _ = choose_leaving(list(scheduler._admitted.values()), lambda claims: next(fits, True))
        return leaving, source.choice((0, held_bytes))

    return preempt


@asynccontextmanager
async def _running(config: EngineConfig) -> AsyncIterator[DeviceEngine]:
    runner: Any = MockRunner(config)
    if config.backend != "mock":
        from mlx_backend.runners.mlx import MLXRunner

        runner = MLXRunner(config)
    engine = DeviceEngine(config, runner)
    engine.start()
    while engine.model_info is None:
        if engine.failure is not None:
            raise engine.failure
        await asyncio.sleep(0.01)
    try:
        yield engine
    finally:
        engine.close()


async def _ask(engine: DeviceEngine, request: GenerationRequest, leaves_after: int | None = None) -> Answer:
    answer: Answer = {index: [] for index in range(request.n)}
    stream, num_tokens = engine.submit([request]), 0
    async for events in stream:
        for event in events:
            if isinstance(event, TokenEvent):
                answer[event.index].append(event.token_id)
                num_tokens += 1
        if leaves_after is not None and num_tokens >= leaves_after:
            break
    await stream.aclose()
    return answer


def _begins(whole: Answer, part: Answer) -> bool:
    return all(whole[index][: len(tokens)] == tokens for index, tokens in part.items())


def _leftovers(engine: DeviceEngine) -> dict[str, int]:
    """Count what is held for requests, all ended, by place."""
    loop, runner = engine._loop, engine._runner
    assert loop is not None
    scheduler, prefixes = loop.scheduler, loop._prefixes
    held: dict[str, Sequence[object] | dict[Any, Any]] = {
        "streams": loop._streams,
        "waiting": list(scheduler.waiting),
        "admitted": scheduler._admitted,
        "rows": scheduler._rows,
        "runner's rows": runner._rows,  # type: ignore[attr-defined]
        "runner's prompts": runner._prompts,  # type: ignore[attr-defined]
        "cursors": getattr(prefixes, "_cursors", {}),
    }
    found = {name: len(each) for name, each in held.items()}
    store = runner.blocks
    found["blocks"] = 0 if store is None else len(store._blocks) - engine.stats().prefix_cache.num_ram_blocks  # type: ignore[attr-defined]
    return found


def _device_bytes(config: EngineConfig) -> int:
    if config.backend == "mock":
        return 0
    import mlx.core as mx

    gc.collect()
    mx.clear_cache()
    return int(mx.get_active_memory())


def _rss() -> int:
    """Return the current bytes; without /proc the peak so far."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main()
