"""The whole engine over the mock, flooded: what it answers is what it answers without the prefix cache.

The mock's store notices a block of other tokens; that would be the engine's death.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from pathlib import Path

import pytest

from mlx_backend.api.errors import OutOfMemory, SequenceFailed
from mlx_backend.api.interface import (
    Engine,
    EngineConfig,
    GenerationRequest,
    MemoryConfig,
    MockConfig,
    PrefixCacheConfig,
    SchedulerConfig,
)
from mlx_backend.engine import engine as engine_module
from mlx_backend.engine.counters import Counters
from mlx_backend.engine.scheduler import Scheduler
from mlx_backend.prefix_cache.cache import PrefixCache
from mlx_backend.prefix_cache.no_cache import NoPrefixCache
from mlx_backend.runners.base import Runner
from mlx_backend.runners.mock import MockRunner
from tests.engine_client import one, request, running, tokens, until
from tests.mlx_backend.prefix_cache.rooms import blocks_of

NUM_REQUESTS = 120
WEIGHTS_BYTES = 1 << 20
LIMIT_GB = 0.0012


def config(**changes: object) -> EngineConfig:
    kept = PrefixCacheConfig(chunk_tokens=8, ram_gb=40_000 / 1e9, max_bytes=60_000)
    fields = {
        "scheduler": SchedulerConfig(max_num_seqs=6, max_chunk_tokens=50),
        "prefix_cache": kept,
        "mock": MockConfig(context=4096),
        **changes,
    }
    return EngineConfig(model_path="mock", backend="mock", **fields)  # type: ignore[arg-type]


def flood(source: random.Random) -> list[GenerationRequest]:
    """Chats of two system prompts, short prompts, repeated ones, and such as are of no interest to the cache."""
    asked: list[GenerationRequest] = []
    for _ in range(NUM_REQUESTS):
        system = tuple([1] * 40 if source.random() < 0.5 else [2] * 19)
        ids = (*system, *(source.randrange(3, 6) for _ in range(source.choice([0, 1, 5, 30, 200]))))
        if source.random() < 0.2:
            ids = ids[: source.randint(1, 9)]
        if asked and source.random() < 0.3:
            ids = source.choice(asked).prompt_ids
        made = request(
            ids,
            source.randint(1, 30),
            n=source.choice([1, 1, 1, 3]),
            system_border=min(len(system), len(ids) - 1),
            cache_salt=source.choice(["", "", "salt"]),
            uses_prefix_cache=source.random() < 0.9,
            num_prompt_logprobs=source.choice([None] * 9 + [0]),
        )
        asked.append(made)
    return asked


async def ask(engine: Engine, wanted: GenerationRequest, expected: list[list[int]], source: random.Random) -> str:
    """What became of one request: whole, left, or out of memory."""
    await asyncio.sleep(source.random() * 0.2)
    stream = engine.submit([wanted])
    if source.random() < 0.25:
        await asyncio.sleep(source.random() * 0.02)
        await stream.aclose()
        return "left"
    try:
        found = await tokens(stream)
    except OutOfMemory:
        return "out of memory"
    finally:
        await stream.aclose()
    assert found == expected
    assert 0 <= stream.num_cached_tokens < len(wanted.prompt_ids)
    return "whole"


class Watched(Counters):
    """Looks, at the end of each turn, at what live requests hold and what is kept: together they must fit.

    And at what the runner holds by id: nobody else knows what of it is of use.
    """

    most_bytes = 0
    most_kept_bytes = 0
    held: tuple[int, int] = (0, 0)
    """Prompts and rows that the runner holds."""

    def observe(self, runner: Runner, scheduler: Scheduler, prefixes: PrefixCache | NoPrefixCache) -> None:
        super().observe(runner, scheduler, prefixes)
        assert isinstance(runner, MockRunner)
        if isinstance(prefixes, PrefixCache):
            assert sorted(ref.id for ref in blocks_of(prefixes)) == sorted(runner.blocks._blocks)
            assert prefixes._cursors.keys() <= scheduler._admitted.keys()
        assert runner._prompts.keys() <= scheduler._admitted.keys() | set(scheduler._dropped)
        Watched.held = len(runner._prompts), len(runner._rows)
        kept = self.prefix_cache.ram_bytes
        Watched.most_bytes = max(Watched.most_bytes, self.kv_bytes + kept)
        Watched.most_kept_bytes = max(Watched.most_kept_bytes, kept)


async def answers(wanted: list[GenerationRequest]) -> list[list[list[int]]]:
    async with running(config(prefix_cache=PrefixCacheConfig(enabled=False))) as engine:
        return [await tokens(engine.submit([each])) for each in wanted]


@pytest.mark.parametrize("limit_gb", [None, LIMIT_GB])
@pytest.mark.parametrize("fault", [None, "oom/37"])
@pytest.mark.parametrize("has_disk", [False, True])
async def test_a_flood_is_answered_as_without_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit_gb: float | None, fault: str | None, has_disk: bool
) -> None:
    monkeypatch.setattr(engine_module, "Counters", Watched)
    monkeypatch.setattr(Watched, "most_bytes", 0)
    monkeypatch.setattr(Watched, "most_kept_bytes", 0)
    monkeypatch.setattr(Watched, "held", (0, 0))
    source = random.Random(f"{limit_gb} {fault} {has_disk}")
    wanted = flood(source)
    expected = await answers(wanted)
    memory = MemoryConfig() if limit_gb is None else MemoryConfig(limit_gb=limit_gb, reserve_gb=0.0)
    kept = replace(config().prefix_cache, dir=str(tmp_path) if has_disk else None)
    assert kept.ram_bytes is not None
    for _ in range(2 if has_disk else 1):
        changed = config(memory=memory, prefix_cache=kept, mock=MockConfig(context=4096, fault=fault))
        async with running(changed) as engine:
            asking = [ask(engine, each, told, source) for each, told in zip(wanted, expected, strict=True)]
            became = await asyncio.wait_for(asyncio.gather(*asking), 120)
            await until(lambda engine=engine: not engine.stats().planned_bytes)  # type: ignore[misc]
            await until(lambda: Watched.held == (0, 0))
            assert engine.failure is None
            stats = engine.stats()
        assert became.count("whole") > NUM_REQUESTS / 3
        assert "out of memory" not in became or fault
        assert stats.prefix_cache.num_ram_tokens + stats.prefix_cache.num_disk_tokens > 0
        if fault is None:
            assert stats.num_failed == 0
    assert 0 < Watched.most_kept_bytes <= kept.ram_bytes
    if limit_gb is not None:
        assert Watched.most_bytes <= round(limit_gb * 1e9) - WEIGHTS_BYTES
    if has_disk:
        files = list(tmp_path.glob("*/*"))
        assert not [path for path in files if path.suffix == ".part"]
        assert sum(path.stat().st_size for path in files if path.suffix == ".kv") <= kept.max_bytes


async def test_what_is_kept_is_written_while_nobody_asks_anything(tmp_path: Path) -> None:
    """An answer, too: if the server is killed while it rests, nothing of it is lost."""
    kept = replace(config().prefix_cache, dir=str(tmp_path), max_bytes=1_000_000)
    async with running(config(prefix_cache=kept)) as engine:
        for first in range(8):
            await one(engine, [first] * 64, 20)

        def is_written() -> bool:
            stats, num_files = engine.stats().prefix_cache, len(list(tmp_path.glob("*/*.kv")))
            return num_files == stats.num_disk_blocks == stats.num_ram_blocks > 80

        await until(is_written)


async def test_a_row_that_fails_takes_nothing_with_it(tmp_path: Path) -> None:
    changed = config(mock=MockConfig(context=4096, fault="fail@3"), scheduler=SchedulerConfig(max_num_seqs=4))
    async with running(changed) as engine:
        with pytest.raises(SequenceFailed):
            await one(engine, [7] * 64, 20)
        stream = engine.submit([request([7] * 64, 20)])
        await tokens(stream)
        assert stream.num_cached_tokens == 63
