"""What the prefix cache counts of prompts and of blocks that went, also where nothing is kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mlx_backend.api.interface import EngineConfig, PrefixCacheConfig, PrefixCacheStats
from tests.engine_client import one, running, until

MOCK = EngineConfig(model_path="mock", backend="mock", prefix_cache=PrefixCacheConfig(chunk_tokens=16))
PROMPT = tuple(range(1, 102))


def counting(kept: PrefixCacheConfig) -> EngineConfig:
    return replace(MOCK, prefix_cache=kept)


async def counts(config: EngineConfig, *prompts: tuple[int, ...], **changes: object) -> PrefixCacheStats:
    """When all prompts are computed, one after the other, but for the last token of each."""
    async with running(config) as engine:
        for prompt in prompts:
            await one(engine, prompt, 3, **changes)
        total = sum(len(prompt) - 1 for prompt in prompts)

        def is_counted() -> bool:
            found = engine.stats().prefix_cache
            return found.num_computed_tokens + found.num_ram_tokens + found.num_disk_tokens == total

        await until(is_counted)
        return engine.stats().prefix_cache


async def test_every_prompt_token_is_either_computed_or_known() -> None:
    found = await counts(MOCK, PROMPT, PROMPT, PROMPT[:50])
    assert (found.num_computed_tokens, found.num_ram_tokens) == (100, 149)


async def test_where_nothing_is_kept_everything_is_computed() -> None:
    found = await counts(counting(PrefixCacheConfig(enabled=False)), PROMPT, PROMPT)
    assert found == PrefixCacheStats(num_computed_tokens=200)
    assert (await counts(MOCK, PROMPT, PROMPT, uses_prefix_cache=False)).num_computed_tokens == 200


async def test_blocks_that_went_are_counted_by_tier(tmp_path: Path) -> None:
    """The folder holds three blocks or so, and memory far more."""
    kept = PrefixCacheConfig(chunk_tokens=16, dir=str(tmp_path), max_bytes=1200)
    async with running(counting(kept)) as engine:
        await one(engine, PROMPT, 3)
        await one(engine, PROMPT[::-1], 3)
        await until(lambda: engine.stats().prefix_cache.num_ram_blocks >= 14)
        await one(engine, PROMPT[50:60], 1)  # the thread that writes is listened to while there is work
        await until(lambda: engine.stats().prefix_cache.num_disk_evicted > 0)
        found = engine.stats().prefix_cache
        assert found.num_evicted == 0
        assert found.disk_bytes <= 1200
