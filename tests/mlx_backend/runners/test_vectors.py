"""A prompt's vector: what a stream says of it, and that it is that of the model, however computed and beside whom."""

from __future__ import annotations

import asyncio
import struct
from functools import lru_cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from mlx_lm.utils import load_model

from mlx_backend.api.interface import (
    ContextConfig,
    EmbeddingInfo,
    Engine,
    EngineConfig,
    MemoryConfig,
    MockConfig,
    SchedulerConfig,
)
from mlx_backend.runners.mlx import MLXRunner
from tests.embedding_models import write_pooling
from tests.engine_client import one, read_all, request, running, until
from tests.tiny_models import VOCAB_SIZE, write_model

MOCK = EngineConfig(model_path="mock", backend="mock")
LENGTHS = (1, 2, 22, 23, 24, 90, 300)
PROMPTS = [tuple(1 + (7 * i + 11 * length) % 300 for i in range(length)) for length in LENGTHS]


def embedding(prompt: Any, **changes: Any) -> Any:
    return request(prompt, 0, embeds=True, **changes)


async def vectors(engine: Engine, prompts: Any) -> list[list[float]]:
    """Of one submission, in its order; nothing else may come of it."""
    told, events = await read_all(engine.submit([embedding(prompt) for prompt in prompts]))
    assert not events
    assert all(event.finish_reason == "length" and not event.logprobs for event in told.values())
    found = [told[index].embedding or b"" for index in range(len(prompts))]
    return [list(struct.unpack(f"<{len(vector) // 4}f", vector)) for vector in found]


# ---- what a stream says


async def test_the_mock_makes_a_vector_of_a_prompt() -> None:
    async with running(MOCK) as engine:
        first, second, again = await vectors(engine, [b"abc", b"abd", b"abc"])
        assert engine.model_info is not None and engine.model_info.embedding is not None
        assert len(first) == engine.model_info.embedding.dim
        assert first == again != second
        assert sum(number**2 for number in first) == pytest.approx(1, abs=1e-6)
        await until(lambda: engine.stats().num_finished == 3)
        stats = engine.stats()
        assert (stats.num_waiting, stats.num_prefilling, stats.num_running, stats.kv_bytes) == (0, 0, 0, 0)
        assert len(await one(engine, b"abc", 4)) == 4


@pytest.mark.parametrize("length", [1, 2, 100])
async def test_every_token_is_computed(length: int) -> None:
    async with running(MOCK) as engine:
        stream = engine.submit([embedding(b"a" * length)])
        assert stream.progress.num_computed_tokens == 0
        await read_all(stream)
        assert stream.progress.num_computed_tokens == length


async def test_an_aborted_one_is_told_nothing_and_leaves_nothing() -> None:
    async with running(EngineConfig(model_path="mock", backend="mock", mock=MockConfig(ttft_s=0.5))) as engine:
        stream = engine.submit([embedding(b"a" * 400), embedding(b"b" * 400)])
        stream.abort(0)
        told, _ = await read_all(stream)
        assert sorted(told) == [1]
        await until(lambda: engine.stats().num_aborted == 1 and engine.stats().kv_bytes == 0)


# ---- what the model says


@lru_cache(1)
def loaded(folder: Path) -> Any:
    model, _ = load_model(folder)
    return model


def reference(folder: Path, prompt: tuple[int, ...], pooling: str, is_normalized: bool = True) -> list[float]:
    """From mlx-lm's model, the whole prompt at once and without a cache."""
    model = loaded(folder)
    hidden = model.model(mx.array(prompt)[None])[0].astype(mx.float32)
    vector = {"last": hidden[-1], "first": hidden[0], "mean": hidden.mean(axis=0)}[pooling]
    found: Any = (vector / mx.linalg.norm(vector) if is_normalized else vector).tolist()
    return list(found)


def assert_equal(found: list[list[float]], expected: list[list[float]]) -> None:
    assert len(found) == len(expected)
    for one_found, one_expected in zip(found, expected, strict=True):
        assert one_found == pytest.approx(one_expected, abs=1e-5)


def config(folder: Path, **scheduler: Any) -> EngineConfig:
    return EngineConfig(model_path=str(folder), scheduler=SchedulerConfig(max_chunk_tokens=23, **scheduler))


@pytest.mark.mlx
@pytest.mark.parametrize(("mode", "pooling"), [("lasttoken", "last"), ("mean_tokens", "mean"), ("cls_token", "first")])
async def test_equal_to_the_whole_prompt_at_once(tmp_path: Path, mode: str, pooling: Any) -> None:
    """Alone, many at once, and beside streams, which say what they say without them."""
    folder = write_pooling(write_model(tmp_path / "m", "llama", model_type="qwen3"), mode)
    expected = [reference(folder, prompt, pooling) for prompt in PROMPTS]
    assert len({tuple(vector) for vector in expected}) == len(PROMPTS)
    async with running(config(folder)) as engine:
        assert engine.model_info is not None
        assert engine.model_info.embedding == EmbeddingInfo(dim=64, pooling=pooling, is_normalized=True)
        assert engine.model_info.no_embedding_reason == ""
        plain = [await one(engine, prompt, 40) for prompt in PROMPTS[2:5]]
        assert_equal([(await vectors(engine, [prompt]))[0] for prompt in PROMPTS], expected)
        assert_equal(await vectors(engine, PROMPTS), expected)
        streams = [asyncio.create_task(one(engine, prompt, 40)) for prompt in PROMPTS[2:5]]
        await until(lambda: engine.stats().num_running == 3)
        assert_equal(await vectors(engine, PROMPTS), expected)
        assert [await stream for stream in streams] == plain
        await until(lambda: engine.stats().kv_bytes == 0)


@pytest.mark.mlx
async def test_equal_more_than_the_rows(tmp_path: Path) -> None:
    folder = write_pooling(write_model(tmp_path / "m", "llama"), "mean_tokens")
    async with running(config(folder, max_num_seqs=2)) as engine:
        assert_equal(await vectors(engine, PROMPTS), [reference(folder, prompt, "mean") for prompt in PROMPTS])


@pytest.mark.mlx
@pytest.mark.parametrize("name", ["llama", "deepseek_v3", "gpt_oss", "gemma3", "falcon_h1"])
async def test_equal_whatever_the_cache(tmp_path: Path, name: str) -> None:
    """Latent, sliding and recurrent state, too; here the vectors are left as long as they are."""
    folder = write_pooling(write_model(tmp_path / name, name), "mean_tokens", is_normalized=False)
    expected = [reference(folder, prompt, "mean", is_normalized=False) for prompt in PROMPTS]
    async with running(config(folder)) as engine:
        for found, wanted in zip(await vectors(engine, PROMPTS), expected, strict=True):
            assert found == pytest.approx(wanted, abs=1e-4)  # of length sqrt(64), not 1


@pytest.mark.mlx
async def test_the_context_may_be_full(tmp_path: Path) -> None:
    folder = write_pooling(write_model(tmp_path / "m", "llama"), "lasttoken")
    limited = EngineConfig(model_path=str(folder), context=ContextConfig(limit=90))
    async with running(limited) as engine:
        assert_equal(await vectors(engine, [PROMPTS[5]]), [reference(folder, PROMPTS[5], "last")])


@pytest.mark.mlx
async def test_within_a_memory_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where not all fit at once, they wait for each other."""
    folder = write_pooling(write_model(tmp_path / "m", "llama"), "lasttoken")
    limited = EngineConfig(model_path=str(folder), memory=MemoryConfig(limit_gb=0.004, reserve_gb=0.0))
    async with running(limited) as engine:
        assert engine.failure is None
        prompts = [PROMPTS[6]] * 12
        prefilling, planned = [], []
        prefill = MLXRunner.prefill

        def sampled(self: MLXRunner, chunk: Any) -> Any:
            prefilling.append(engine.stats().num_prefilling)
            planned.append(engine.stats().planned_bytes)
            return prefill(self, chunk)

        monkeypatch.setattr(MLXRunner, "prefill", sampled)
        assert_equal(await vectors(engine, prompts), [reference(folder, PROMPTS[6], "last")] * 12)
        assert engine.model_info is not None and engine.model_info.memory is not None
        assert 1 <= max(prefilling) < 12
        assert 0 < max(planned) <= engine.model_info.memory.free_bytes


@pytest.mark.mlx
async def test_weights_without_the_head(tmp_path: Path) -> None:
    """As Qwen's own files of Qwen3-Embedding are: named from within the model, and one of them has no head."""
    kind: dict[str, Any] = {"model_type": "qwen3", "tie_word_embeddings": False}
    folder = write_model(tmp_path / "whole", "llama", **kind)
    expected = [reference(folder, prompt, "last") for prompt in PROMPTS]
    model, _ = load_model(folder)
    inner = dict(tree_flatten(model.model.parameters()))
    bare = write_pooling(write_model(tmp_path / "bare", "llama", **kind), "lasttoken")
    mx.save_safetensors(str(bare / "model.safetensors"), inner)
    async with running(config(bare)) as engine:
        assert engine.failure is None
        assert_equal(await vectors(engine, PROMPTS), expected)
        assert len(await one(engine, PROMPTS[2], 3)) == 3


@pytest.mark.mlx
@pytest.mark.parametrize("name", ["llama", "mamba2"])
async def test_a_model_without_hidden_states_or_pooling(tmp_path: Path, name: str) -> None:
    folder = write_model(tmp_path / name, name)
    said = "no modules.json"
    if name == "mamba2":
        write_pooling(folder, "lasttoken")
        said = "gives no hidden states"
    async with running(EngineConfig(model_path=str(folder))) as engine:
        assert engine.model_info is not None
        assert engine.model_info.embedding is None
        assert said in engine.model_info.no_embedding_reason
        assert len(await one(engine, (1, 2, VOCAB_SIZE - 1), 3)) == 3
