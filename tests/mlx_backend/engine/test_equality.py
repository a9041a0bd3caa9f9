"""However requests are cut, batched and mixed, the tokens are those that mlx-lm's model gives one prompt alone."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest

from mlx_backend.api.interface import EngineConfig, SamplingParams, SchedulerConfig
from tests.engine_client import one, request, running, tokens
from tests.grouped_rows import grouping, in_groups  # noqa: F401
from tests.probed_once import probed_once  # noqa: F401
from tests.tiny_models import CONFIGS, VOCAB_SIZE, WINDOW, write_model

pytestmark = [pytest.mark.mlx, pytest.mark.usefixtures("probed_once")]

LENGTHS = (1, 2, 5, 25, WINDOW, WINDOW + 1, 70, 300)
NUM_OUTPUT = 14
"""Of which a prompt shorter than a window becomes a longer one."""
BATCHED = [name for name in CONFIGS if name != "llama4"]


@pytest.fixture(scope="module", params=list(CONFIGS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    changes = {"num_hidden_layers": 2} if name == "deepseek_v3" else {}
    return write_model(tmp_path_factory.mktemp("models") / name, name, **changes)


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    source = random.Random(5)
    return [[source.randrange(1, VOCAB_SIZE) for _ in range(length)] for length in LENGTHS]


@pytest.fixture(scope="module")
def expected(folder: Path, prompts: list[list[int]]) -> list[list[int]]:
    """Greedy tokens from mlx-lm's own model and caches: the whole prompt at once, no batch."""
    import mlx.core as mx
    from mlx_lm.models.cache import make_prompt_cache
    from mlx_lm.utils import load_model

    model, _ = load_model(folder)
    outputs = []
    for prompt in prompts:
        caches, inputs, output = make_prompt_cache(model), mx.array([prompt]), []
        for _ in range(NUM_OUTPUT):
            chosen = mx.argmax(model(inputs, cache=caches)[:, -1], axis=-1)
            inputs = chosen[None]
            output.append(chosen.item())
        outputs.append(output)
    assert len({token for output in outputs for token in output}) > 40, "a model that repeats itself proves nothing"
    return outputs


def config(folder: Path, **scheduler: Any) -> EngineConfig:
    return EngineConfig(model_path=str(folder), scheduler=SchedulerConfig(**scheduler))


async def test_one_at_a_time(folder: Path, prompts: list[list[int]], expected: list[list[int]]) -> None:
    async with running(config(folder)) as engine:
        assert [await one(engine, prompt, NUM_OUTPUT) for prompt in prompts] == expected


@in_groups
@pytest.mark.usefixtures("grouping")
async def test_all_at_once(folder: Path, prompts: list[list[int]], expected: list[list[int]]) -> None:
    async with running(config(folder)) as engine:
        outputs = await asyncio.gather(*(one(engine, prompt, NUM_OUTPUT) for prompt in prompts))
        assert list(outputs) == expected


async def test_more_than_the_rows(folder: Path, prompts: list[list[int]], expected: list[list[int]]) -> None:
    async with running(config(folder, max_num_seqs=3)) as engine:
        outputs = await asyncio.gather(*(one(engine, prompt, NUM_OUTPUT) for prompt in prompts))
        assert list(outputs) == expected


@in_groups
@pytest.mark.usefixtures("grouping")
async def test_joining_and_leaving_midway(folder: Path, prompts: list[list[int]], expected: list[list[int]]) -> None:
    async with running(config(folder)) as engine:

        async def after_some_steps(place: int) -> list[int]:
            target = engine.stats().num_steps + 2 * place
            while engine.stats().num_steps < target and engine.stats().num_running:
                await asyncio.sleep(0.001)
            return await one(engine, prompts[place], NUM_OUTPUT - place)  # they leave at different steps, too

        outputs = await asyncio.gather(*(after_some_steps(place) for place in range(len(prompts))))
        assert list(outputs) == [tokens[: NUM_OUTPUT - place] for place, tokens in enumerate(expected)]


@pytest.mark.parametrize(("chunk", "picked"), [(1, [3, 5]), (7, [3, 6]), (48, [3, 6, 7])])
async def test_chunked_prefill(
    folder: Path, prompts: list[list[int]], expected: list[list[int]], chunk: int, picked: list[int]
) -> None:
    async with running(config(folder, max_chunk_tokens=chunk)) as engine:
        outputs = await asyncio.gather(*(one(engine, prompts[place], NUM_OUTPUT) for place in picked))
        assert list(outputs) == [expected[place] for place in picked]


async def test_n_continuations_of_one_prefill(
    folder: Path, prompts: list[list[int]], expected: list[list[int]]
) -> None:
    async with running(config(folder)) as engine:
        outputs = await tokens(engine.submit([request(prompts[6], NUM_OUTPUT, n=3)]))
        assert outputs == [expected[6]] * 3


async def test_a_seed_gives_its_tokens_whatever_else_runs(folder: Path, prompts: list[list[int]]) -> None:
    sampling = SamplingParams(temperature=0.9, top_p=0.95, top_k=100, min_p=0.01, seed=11, frequency_penalty=0.3)
    async with running(config(folder)) as engine:
        alone = await one(engine, prompts[4], NUM_OUTPUT, sampling=sampling)
        others = [SamplingParams(temperature=1.5, seed=i, presence_penalty=i % 2) for i in range(len(prompts))]
        others[4] = sampling
        mixed = await asyncio.gather(
            *(one(engine, prompt, NUM_OUTPUT, sampling=other) for prompt, other in zip(prompts, others, strict=True))
        )
        assert mixed[4] == alone
        changed = await one(engine, prompts[4], NUM_OUTPUT, sampling=SamplingParams(temperature=0.9, seed=12))
        assert changed != alone


async def test_n_samples_differ_and_repeat(folder: Path, prompts: list[list[int]]) -> None:
    sampling = SamplingParams(temperature=1.0, seed=3)
    async with running(config(folder)) as engine:
        first = await tokens(engine.submit([request(prompts[3], 20, n=3, sampling=sampling)]))
        again = await tokens(engine.submit([request(prompts[3], 20, n=3, sampling=sampling)]))
        assert first == again
        assert len({tuple(output) for output in first}) == 3


async def test_aborting_one_leaves_the_others_right(
    folder: Path, prompts: list[list[int]], expected: list[list[int]]
) -> None:
    async with running(config(folder)) as engine:
        streams = [engine.submit([request(prompt, NUM_OUTPUT)]) for prompt in prompts]
        doomed = streams[2]
        await anext(aiter(doomed))
        await doomed.aclose()
        await streams[7].aclose()  # this one has not got its first token yet, most likely
        kept = [place for place in range(len(prompts)) if place not in (2, 7)]
        outputs = await asyncio.gather(*(tokens(streams[place]) for place in kept))
        assert [output for (output,) in outputs] == [expected[place] for place in kept]


async def test_what_a_model_gets_is_said(name: str, folder: Path) -> None:
    async with running(config(folder)) as engine:
        info = engine.model_info
        assert info is not None
        assert info.is_batched == (name in BATCHED)
        assert (info.unbatched_reason is None) == info.is_batched
        assert info.vocab_size == VOCAB_SIZE


def test_every_batched_kind_is_in_the_table() -> None:
    from mlx_backend.kv_cache import spec
    from mlx_backend.kv_cache.handler import CacheHandler

    for kind in spec.KINDS.values():
        assert isinstance(kind.handler, CacheHandler)
