"""Preempted sequences get the answers that they would have had: with MLX caches of every kind, and with the mock."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from pathlib import Path

import pytest

from mlx_backend.api.interface import (
    Engine,
    EngineConfig,
    GenerationRequest,
    KVCacheConfig,
    MemoryConfig,
    MockConfig,
    MockText,
    PrefixCacheConfig,
    SamplingParams,
    SchedulerConfig,
    TokenEvent,
)
from mlx_backend.engine.engine import DeviceEngine
from mlx_backend.engine.expected_length import ExpectedLength
from tests.engine_client import GREEDY, read, read_all, request, running, until
from tests.ladder import END, Ladder
from tests.preemption import preempt_at_random
from tests.tiny_models import CONFIGS, VOCAB_SIZE, write_model

NUM_OUTPUT = 16
BATCHED = [name for name in CONFIGS if name != "llama4"]
"""Others run one at a time: there is nothing to preempt."""


def requests() -> list[GenerationRequest]:
    """Greedy and seeded, with one continuation and several."""
    source, found = random.Random(5), []
    for place, length in enumerate((1, 5, 33, 70, 150, 150, 20, 9)):
        prompt = [source.randrange(1, VOCAB_SIZE) for _ in range(length)]
        sampling = GREEDY if place % 2 else SamplingParams(temperature=1.0, seed=place)
        found.append(request(prompt, NUM_OUTPUT, sampling=sampling, n=3 if place in (2, 5) else 1))
    return found


async def answers(engine: Engine, asked: list[GenerationRequest]) -> list[dict[int, list[int]]]:
    told = await asyncio.gather(*(read(engine.submit([each])) for each in asked))
    return [{index: [event.token_id for event in events] for index, events in sorted(each.items())} for each in told]


@pytest.mark.mlx
@pytest.mark.parametrize("name", [*BATCHED, "8 bits"])
async def test_tokens_are_the_same_with_caches_of_every_kind(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_quantized = name == "8 bits"
    folder = (
        write_model(tmp_path / "model", "llama", head_dim=64) if is_quantized else write_model(tmp_path / "m", name)
    )
    kept = KVCacheConfig(bits=8, group_size=32) if is_quantized else KVCacheConfig()
    config = EngineConfig(model_path=str(folder), kv_cache=kept, prefix_cache=PrefixCacheConfig(chunk_tokens=16))
    async with running(config) as engine:
        expected = await answers(engine, requests())
    async with running(config) as engine:
        counted = preempt_at_random(monkeypatch, seed=len(name))
        assert await answers(engine, requests()) == expected
        stats = engine.stats()
        assert stats.num_preemptions == counted[0] > 5
        assert stats.num_recomputed_tokens > 0
        assert (stats.num_finished, stats.num_failed) == (12, 0)
        await until(lambda: not engine.stats().kv_bytes)


@pytest.mark.mlx
async def test_a_grammar_and_logprobs_go_on_where_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ladder = Ladder(length=15)
    sampling = SamplingParams(temperature=1.0, seed=3, num_logprobs=2)
    asked = [
        *(request((place, 7, 9), 30, n=2, grammar=ladder, stop_ids={END}, sampling=sampling) for place in range(1, 4)),
        *(request(range(place, 80), 20, sampling=sampling, num_prompt_logprobs=1) for place in range(1, 4)),
    ]
    async with running(EngineConfig(model_path=str(write_model(tmp_path / "llama", "llama")))) as engine:
        expected = await asyncio.gather(*(read_all(engine.submit([each])) for each in asked))
        counted = preempt_at_random(monkeypatch, seed=1)
        found = await asyncio.gather(*(read_all(engine.submit([each])) for each in asked))
        assert counted[0] > 5
    for (prompts, events), (same_prompts, same_events) in zip(found, expected, strict=True):
        assert {index: len(event.logprobs) for index, event in prompts.items()} == {
            index: len(event.logprobs) for index, event in same_prompts.items()
        }
        assert _plain(events) == _plain(same_events)
        ranks = [event.logprobs for each in events.values() for event in each]
        assert all(each is not None and len(each.top) == 2 for each in ranks)


def _plain(events: dict[int, list[TokenEvent]]) -> dict[int, list[tuple[int, str | None]]]:
    return {index: [(event.token_id, event.finish_reason) for event in each] for index, each in events.items()}


# --- by memory alone


def limited(limit_gb: float, **kept: object) -> EngineConfig:
    return EngineConfig(
        model_path="mock",
        backend="mock",
        memory=MemoryConfig(limit_gb=limit_gb),
        scheduler=SchedulerConfig(max_num_seqs=8),
        mock=MockConfig(context=8192),
        prefix_cache=PrefixCacheConfig(chunk_tokens=16, **kept),  # type: ignore[arg-type]
    )


LONG = [1500, 2000, 900, 1100, 1300, 60, 1700, 1900]


def long_requests() -> list[GenerationRequest]:
    """More than is expected of them."""
    texts = [tuple((place + number) % 250 for number in range(length)) for place, length in enumerate(LONG)]
    ask = request((1, 2, 3), 3000, stop_ids={256})
    return [replace(ask, prompt_ids=(place, 5, 6), mock=MockText(outputs=(text,))) for place, text in enumerate(texts)]


@pytest.mark.parametrize("is_kept", [True, False])
async def test_room_is_made_by_the_newest_and_what_they_had_is_restored(is_kept: bool) -> None:
    async with running(limited(0.0015, enabled=is_kept)) as engine:
        found = await answers(engine, long_requests())
        expected = [(*each.mock.outputs[0], 256) for each in long_requests() if each.mock is not None]
        assert [tuple(each[0]) for each in found] == expected
        stats = engine.stats()
        assert isinstance(engine, DeviceEngine) and engine._loop is not None
        assert engine._loop.scheduler.lengths.expect(3000) > ExpectedLength().expect(3000)
    assert 0 < stats.num_preemptions < 40
    assert (stats.num_finished, stats.num_failed) == (len(LONG), 0)
    num_prompt_tokens = 2 * len(LONG)
    kept = stats.prefix_cache
    assert kept.num_computed_tokens + kept.num_ram_tokens == num_prompt_tokens  # a prompt counts once
    mean = stats.num_recomputed_tokens / stats.num_preemptions
    assert mean < 100 if is_kept else mean > 300
