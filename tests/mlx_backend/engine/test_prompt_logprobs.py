"""Log-probabilities of prompts: what a stream says of them, and that they are those of the model, however computed."""

from __future__ import annotations

import asyncio
import itertools
import math
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.utils import load_model

from mlx_backend.api.errors import OutOfMemory
from mlx_backend.api.interface import EngineConfig, MockConfig, PromptEvent, SamplingParams, SchedulerConfig
from mlx_backend.runners import ranking
from mlx_backend.sampling.logprobs import rank
from tests.engine_client import one, read_all, request, running, tokens, until
from tests.tiny_models import VOCAB_SIZE, write_model

PROMPT = tuple(1 + (7 * i) % 300 for i in range(90))
MOCK = EngineConfig(model_path="mock", backend="mock")


# ---- what a stream says


async def test_a_prompt_is_told_to_every_sequence_that_asked_before_its_tokens() -> None:
    async with running(MOCK) as engine:
        prompts, events = await read_all(
            engine.submit([request(b"abc", 3, n=2, num_prompt_logprobs=1), request(b"abc", 3)])
        )
    assert sorted(prompts) == [0, 1]
    assert [len(events[index]) for index in range(3)] == [3, 3, 3]
    for event in prompts.values():
        assert event.finish_reason is None
        assert [[token_id for token_id, _ in each.top] for each in event.logprobs] == [[ord("b")], [ord("c")]]
    assert prompts[0].logprobs is prompts[1].logprobs


@pytest.mark.parametrize("prompt", [b"a", b"abc"])
@pytest.mark.parametrize("num_logprobs", [None, 0])
async def test_no_tokens_wanted(prompt: bytes, num_logprobs: int | None) -> None:
    num_told = 0 if num_logprobs is None else len(prompt) - 1
    async with running(MOCK) as engine:
        stream = engine.submit([request(prompt, 0, n=2, num_prompt_logprobs=num_logprobs)])
        prompts, events = await read_all(stream)
        assert events == {}
        assert [(index, event.finish_reason, len(event.logprobs)) for index, event in prompts.items()] == [
            (0, "length", num_told),
            (1, "length", num_told),
        ]
        assert stream.progress.num_computed_tokens == len(prompt)
        await until(lambda: engine.stats().num_finished == 2)
        stats = engine.stats()
        assert (stats.num_waiting, stats.num_prefilling, stats.num_running, stats.kv_bytes) == (0, 0, 0, 0)
        assert len(await one(engine, b"abc", 4)) == 4


async def test_a_prompt_of_one_token_has_nothing_to_tell() -> None:
    async with running(MOCK) as engine:
        prompts, events = await read_all(engine.submit([request(b"a", 2, num_prompt_logprobs=3)]))
    assert prompts == {0: PromptEvent(0)}
    assert len(events[0]) == 2


async def test_an_aborted_sequence_is_told_nothing() -> None:
    async with running(EngineConfig(model_path="mock", backend="mock", mock=MockConfig(ttft_s=0.5))) as engine:
        stream = engine.submit([request(b"a" * 400, 0, n=2, num_prompt_logprobs=0)])
        stream.abort(0)
        prompts, _ = await read_all(stream)
        assert sorted(prompts) == [1]


async def test_who_lost_a_row_is_not_told_again() -> None:
    """Rows are lost in the fourth step; the request that holds most fails, the other is computed again."""
    config = EngineConfig(model_path="mock", backend="mock", mock=MockConfig(fault="oom@4"))
    async with running(config) as engine:
        small, large = (
            asyncio.create_task(read_all(engine.submit([request(b"x" * size, 9, num_prompt_logprobs=0)])))
            for size in (5, 300)
        )
        results = await asyncio.gather(small, large, return_exceptions=True)
    survivors = [result for result in results if not isinstance(result, BaseException)]
    assert sum(isinstance(result, OutOfMemory) for result in results) == 1
    for prompts, events in survivors:
        assert len(prompts) == 1  # read_all would not take a second
        assert len(events[0]) == 9


# ---- what the model says


def reference(folder: Path, prompt: tuple[int, ...]) -> mx.array:
    """float32 [len(prompt) - 1, vocab]: of each place but the first, from the whole prompt at once."""
    model, _ = load_model(folder)
    logits = model(mx.array(prompt)[None])[0].astype(mx.float32)
    return (logits - mx.logsumexp(logits, axis=-1, keepdims=True))[:-1]


def assert_equal(event: PromptEvent, prompt: tuple[int, ...], expected: mx.array, num_top: int) -> None:
    rows: Any = expected.tolist()
    assert len(event.logprobs) == len(rows) == len(prompt) - 1
    for token_id, told, row in zip(prompt[1:], event.logprobs, rows, strict=True):
        assert told.logprob == pytest.approx(row[token_id], abs=1e-4)
        assert [logprob for _, logprob in told.top] == pytest.approx(sorted(row)[::-1][:num_top], abs=1e-4)
        assert all(logprob == pytest.approx(row[id], abs=1e-4) for id, logprob in told.top)
        assert all(logprob == told.logprob for id, logprob in told.top if id == token_id)


@pytest.mark.mlx
@pytest.mark.parametrize("name", ["llama", "deepseek_v3", "gpt_oss", "falcon_h1"])
async def test_equal_to_the_whole_prompt_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """In uneven chunks and pieces of chunks, alone and beside others, with and without tokens to follow."""
    folder = write_model(tmp_path / name, name)
    monkeypatch.setattr(ranking, "_LOGITS_BYTES", 4 * VOCAB_SIZE * 7)
    expected = reference(folder, PROMPT)
    other = tuple(reversed(PROMPT[20:70]))
    config = EngineConfig(model_path=str(folder), scheduler=SchedulerConfig(max_chunk_tokens=23))
    async with running(config) as engine:
        plain = await one(engine, PROMPT, 6)
        requests = [
            request(PROMPT, 0, num_prompt_logprobs=1),
            request(PROMPT, 6, n=2, num_prompt_logprobs=4),
            request(other, 3, num_prompt_logprobs=0),
            request(PROMPT, 6),
        ]
        prompts, events = await read_all(engine.submit(requests))
    assert sorted(prompts) == [0, 1, 2, 3]
    assert_equal(prompts[0], PROMPT, expected, 1)
    assert_equal(prompts[1], PROMPT, expected, 4)
    assert_equal(prompts[3], other, reference(folder, other), 0)
    for index in (1, 2, 4):
        assert [event.token_id for event in events[index]] == plain


@pytest.mark.mlx
async def test_the_first_token_follows_the_prompt(tmp_path: Path) -> None:
    """A text split between prompt and output has the same log-probabilities wherever it is split."""
    folder = write_model(tmp_path / "llama", "llama")
    asking = SamplingParams(temperature=0, num_logprobs=1)
    async with running(EngineConfig(model_path=str(folder))) as engine:
        _, events = await read_all(engine.submit([request(PROMPT, 5, sampling=asking)]))
        output = tuple(event.token_id for event in events[0])
        prompts, _ = await read_all(engine.submit([request(PROMPT + output, 0, num_prompt_logprobs=1)]))
    assert [each.logprob for each in prompts[0].logprobs[-5:]] == pytest.approx(
        [event.logprobs.logprob for event in events[0] if event.logprobs is not None], abs=1e-4
    )


@pytest.mark.mlx
async def test_memory_does_not_grow_with_the_prompts_logits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vocab, num_tokens = 20_000, 1000
    folder = write_model(tmp_path / "wide", "llama", vocab_size=vocab)
    monkeypatch.setattr(ranking, "_LOGITS_BYTES", 4 * vocab * 25)
    prompt = (5,) * num_tokens
    async with running(EngineConfig(model_path=str(folder))) as engine:
        await tokens(engine.submit([request(prompt, 1)]))
        await until(lambda: engine.stats().kv_bytes == 0)
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        prompts, _ = await read_all(engine.submit([request(prompt, 0, num_prompt_logprobs=3)]))
        assert len(prompts[0].logprobs) == num_tokens - 1
        assert mx.get_peak_memory() - before < 4 * vocab * num_tokens / 4


@pytest.mark.mlx
@pytest.mark.parametrize("num_top", [0, 1, 2, 9])
def test_rank(num_top: int) -> None:
    logits = mx.random.normal((5, 9), key=mx.random.key(1))
    own, ids, top = rank(logits, mx.array([3, 1, 4, 1, 5]), num_top)
    for i, token_id in enumerate([3, 1, 4, 1, 5]):
        row: Any = logits[i].tolist()
        total = math.log(sum(map(math.exp, row)))
        assert own[i].item() == pytest.approx(row[token_id] - total, abs=1e-6)
        best = sorted(range(9), key=lambda id: -row[id])[:num_top]
        assert ids[i].tolist() == best
        assert top[i].tolist() == pytest.approx([row[id] - total for id in best], abs=1e-6)
    assert all(a >= b for line in top.tolist() for a, b in itertools.pairwise(line))
