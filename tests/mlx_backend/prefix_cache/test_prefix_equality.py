"""After a hit, an answer is the one that comes without: for every kind of cache, from memory, from disk, in part.

The oracle is the same engine with the prefix cache off.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from mlx_backend.api.interface import Engine, EngineConfig, KVCacheConfig, PrefixCacheConfig, SchedulerConfig
from mlx_backend.factory import create_engine
from tests.engine_client import one, read, request, running, until
from tests.grouped_rows import grouping, in_groups  # noqa: F401
from tests.probed_once import probed_once  # noqa: F401
from tests.tiny_models import VOCAB_SIZE, write_model

pytestmark = [pytest.mark.mlx, pytest.mark.usefixtures("probed_once")]

NUM_OUTPUT = 12
LATENT = {"num_hidden_layers": 2, "kv_lora_rank": 64, "qk_rope_head_dim": 32, "qk_nope_head_dim": 16}


@dataclass(frozen=True)
class Case:
    """A model, changes to its tiny config, and how its KV cache is held. `cuts`: no part of it is a snapshot."""

    model: str
    kv: dict[str, int] = field(default_factory=dict)
    changes: dict[str, Any] = field(default_factory=lambda: {"head_dim": 32})
    cuts: bool = True

    def __str__(self) -> str:
        return "-".join([self.model, *(f"{name}{value}" for name, value in self.kv.items())])


def soak(case: Case) -> Any:
    """Leave a case to `make soak`: others are of the same kinds, alone or together."""
    return pytest.param(case, marks=pytest.mark.soak)


CASES = [
    soak(Case("llama", {"bits": 4, "group_size": 32, "start": 20})),
    soak(Case("falcon_h1", {"bits": 8, "group_size": 32}, cuts=False)),
    Case("llama"),
    soak(Case("llama", changes={"head_dim": 32, "num_hidden_layers": 1})),
    Case("llama", {"bits": 8, "group_size": 32}),
    soak(Case("llama", {"key_bits": 8, "value_bits": 4, "group_size": 32})),
    Case("deepseek_v3", changes=LATENT),
    soak(Case("deepseek_v3", {"bits": 8, "group_size": 32}, LATENT)),
    Case("deepseek_v3", {"bits": 4, "group_size": 64, "start": 20}, LATENT),
    soak(Case("gpt_oss", cuts=False)),
    Case("gpt_oss", {"bits": 8, "group_size": 32}, cuts=False),
    Case("gemma3", cuts=False),
    Case("falcon_h1", cuts=False),
    Case("mamba2", changes={}, cuts=False),
]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case}-{case.changes.get('num_hidden_layers', '')}")
def case(request: pytest.FixtureRequest) -> Case:
    assert isinstance(request.param, Case)
    return request.param


@pytest.fixture(scope="module")
def config(case: Case, tmp_path_factory: pytest.TempPathFactory) -> EngineConfig:
    folder = write_model(tmp_path_factory.mktemp("models") / case.model, case.model, **case.changes)
    return EngineConfig(
        model_path=str(folder),
        kv_cache=KVCacheConfig(**case.kv),
        scheduler=SchedulerConfig(max_chunk_tokens=50),
        prefix_cache=PrefixCacheConfig(chunk_tokens=16, snapshot_tokens=48),
    )


def prompt(length: int, seed: int = 0) -> tuple[int, ...]:
    source = random.Random(seed)
    return tuple(source.randrange(1, VOCAB_SIZE) for _ in range(length))


class Reference:
    """Answers of an engine that keeps nothing, each prompt computed once."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._known: dict[tuple[int, ...], list[int]] = {}

    async def __call__(self, *prompts: tuple[int, ...]) -> list[list[int]]:
        await until(lambda: self._engine.model_info is not None or self._engine.failure is not None)
        for ids in prompts:
            if ids not in self._known:
                self._known[ids] = await one(self._engine, ids, NUM_OUTPUT)
        return [self._known[ids] for ids in prompts]


@pytest.fixture(scope="module")
def without(config: EngineConfig) -> Iterator[Reference]:
    engine = create_engine(replace(config, prefix_cache=PrefixCacheConfig(enabled=False)))
    engine.start()
    yield Reference(engine)
    engine.close()


async def cached(engine: Engine, ids: tuple[int, ...], **changes: object) -> tuple[list[int], int]:
    """An answer, and how many tokens of its prompt were not computed."""
    stream = engine.submit([request(ids, NUM_OUTPUT, **changes)])
    events = await read(stream)
    return [event.token_id for event in events[0]], stream.num_cached_tokens


@asynccontextmanager
async def on_disk(config: EngineConfig, folder: Path) -> AsyncIterator[Engine]:
    async with running(replace(config, prefix_cache=replace(config.prefix_cache, dir=str(folder)))) as engine:
        assert engine.model_info is not None
        assert engine.model_info.prefix_cache.folder == str(folder)
        yield engine


async def test_the_same_prompt_again(config: EngineConfig, without: Reference) -> None:
    ids = prompt(203)
    (expected,) = await without(ids)
    async with running(config) as engine:
        assert await cached(engine, ids) == (expected, 0)
        for _ in range(2):
            assert await cached(engine, ids) == (expected, 202)
        assert engine.stats().prefix_cache.num_ram_tokens == 404


async def test_prompts_that_part(case: Case, config: EngineConfig, without: Reference) -> None:
    """At a place inside a block, where a snapshot is not."""
    first, second = prompt(203), prompt(140)[:130] + prompt(60, seed=1)
    expected = await without(first, second)
    async with running(config) as engine:
        assert await cached(engine, first) == (expected[0], 0)
        assert await cached(engine, second) == (expected[1], 130 if case.cuts else 96)


async def test_the_next_turn_goes_on_after_the_answer(config: EngineConfig, without: Reference) -> None:
    ids = prompt(70)
    (answer,) = await without(ids)
    longer = (*ids, *answer, *prompt(20, seed=2))
    (expected,) = await without(longer)
    async with running(config) as engine:
        assert await cached(engine, ids) == (answer, 0)
        # the last token of an answer was never computed with
        assert await cached(engine, longer) == (expected, len(ids) + len(answer) - 1)


@in_groups
@pytest.mark.usefixtures("grouping")
async def test_the_next_turns_of_several_at_once(config: EngineConfig, without: Reference) -> None:
    prompts = [prompt(length, seed=length) for length in (9, 70, 71, 203)]
    answers = await without(*prompts)
    longer = [(*ids, *answer, *prompt(20, seed=2)) for ids, answer in zip(prompts, answers, strict=True)]
    expected = await without(*longer)
    async with running(config) as engine:
        first = await asyncio.gather(*(cached(engine, ids) for ids in prompts))
        assert first == [(answer, 0) for answer in answers]
        then = await asyncio.gather(*(cached(engine, ids) for ids in longer))
        known = [len(ids) + len(answer) - 1 for ids, answer in zip(prompts, answers, strict=True)]
        assert then == list(zip(expected, known, strict=True))


async def test_after_a_restart(config: EngineConfig, without: Reference, tmp_path: Path) -> None:
    ids, other = prompt(203), prompt(120) + prompt(70, seed=3)
    expected = await without(ids, other)
    async with on_disk(config, tmp_path) as engine:
        assert await cached(engine, ids) == (expected[0], 0)
    async with on_disk(config, tmp_path) as engine:
        assert engine.stats().prefix_cache.num_ram_blocks == 0
        assert await cached(engine, ids) == (expected[0], 202)
        stats = engine.stats().prefix_cache
        assert (stats.num_disk_tokens, stats.num_ram_tokens) == (202, 0)
        answer, num_cached = await cached(engine, other)
        assert (answer, num_cached >= 96) == (expected[1], True)
    async with on_disk(config, tmp_path) as engine:
        assert await cached(engine, other) == (expected[1], len(other) - 1)


async def test_memory_that_holds_less_than_the_prompt(config: EngineConfig, without: Reference, tmp_path: Path) -> None:
    """What is read from the disk is used without a place in memory."""
    ids = prompt(203)
    (expected,) = await without(ids)
    async with on_disk(config, tmp_path) as engine:
        assert await cached(engine, ids) == (expected, 0)
    tight = replace(config, prefix_cache=replace(config.prefix_cache, ram_gb=0.0))
    async with on_disk(tight, tmp_path) as engine:
        for _ in range(2):
            assert await cached(engine, ids) == (expected, 202)
        assert engine.stats().prefix_cache.ram_bytes == 0


async def test_a_prefill_that_was_given_up_is_gone_on_with(
    config: EngineConfig, without: Reference, tmp_path: Path
) -> None:
    ids = prompt(270)
    (expected,) = await without(ids)
    slow = replace(config, scheduler=replace(config.scheduler, max_chunk_tokens=20))
    for after_restart in (False, True):
        folder = tmp_path / str(after_restart)
        async with on_disk(slow, folder) as engine:
            stream = engine.submit([request(ids, NUM_OUTPUT)])
            await until(lambda stream=stream: stream.progress.num_computed_tokens > 120)  # type: ignore[misc]
            await stream.aclose()
            await until(lambda engine=engine: engine.stats().num_prefilling == 0)  # type: ignore[misc]
            if not after_restart:
                answer, num_cached = await cached(engine, ids)
                assert (answer, num_cached >= 120) == (expected, True)
        if after_restart:
            async with on_disk(slow, folder) as engine:
                answer, num_cached = await cached(engine, ids)
                assert (answer, num_cached >= 120) == (expected, True)


@pytest.mark.parametrize("grouping", ["groups"], indirect=True)
@pytest.mark.usefixtures("grouping")
async def test_many_at_once_compute_what_they_share_once(config: EngineConfig, without: Reference) -> None:
    shared = prompt(160)
    prompts = [shared + prompt(9 + 20 * number, seed=10 + number) for number in range(5)]
    expected = await without(*prompts)
    async with running(config) as engine:
        streams = [
            engine.submit([request(each, NUM_OUTPUT, system_border=160, cache_breakpoints=(160,))]) for each in prompts
        ]
        answers = await asyncio.gather(*(read(stream) for stream in streams))
        assert [[event.token_id for event in answer[0]] for answer in answers] == expected
        num_cached = sorted(stream.num_cached_tokens for stream in streams)
        assert num_cached[0] == 0
        assert num_cached[1:] == [160] * 4


async def test_tenants_share_nothing_and_an_opt_out_keeps_nothing(config: EngineConfig, without: Reference) -> None:
    ids = prompt(100)
    (expected,) = await without(ids)
    async with running(config) as engine:
        assert await cached(engine, ids, uses_prefix_cache=False) == (expected, 0)
        assert engine.stats().prefix_cache.num_ram_blocks == 0
        assert await cached(engine, ids, cache_salt="one") == (expected, 0)
        assert await cached(engine, ids, cache_salt="two") == (expected, 0)
        assert await cached(engine, ids) == (expected, 0)
        assert await cached(engine, ids, cache_salt="one") == (expected, 99)
        assert await cached(engine, ids, uses_prefix_cache=False) == (expected, 0)
