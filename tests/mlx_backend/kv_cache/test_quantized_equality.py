"""A quantized KV cache changes what is remembered, token by token, and nothing else: batches, chunks and joins do not.

The oracle is mlx-lm's model with its own full-precision caches, whose columns were quantized and dequantized as they
were written.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from mlx_backend.api.interface import EngineConfig, KVCacheConfig, SamplingParams, SchedulerConfig
from tests.engine_client import one, request, running, tokens
from tests.grouped_rows import grouping, in_groups  # noqa: F401
from tests.probed_once import probed_once  # noqa: F401
from tests.tiny_models import VOCAB_SIZE, WINDOW, write_model

pytestmark = [pytest.mark.mlx, pytest.mark.usefixtures("probed_once")]

LENGTHS = (1, 2, 11, 25, WINDOW, WINDOW + 1, 70, 300)
NUM_OUTPUT = 12
"""Of which prompts that are shorter than a window, or than what stays in full precision, become longer."""
LATENT = {"num_hidden_layers": 2, "kv_lora_rank": 64, "qk_rope_head_dim": 32, "qk_nope_head_dim": 16}


@dataclass(frozen=True)
class Case:
    """A model, changes to its tiny config so that groups divide its heads, and how its KV cache is held."""

    model: str
    kv: dict[str, int]
    changes: dict[str, Any] = field(default_factory=lambda: {"head_dim": 32})

    def __str__(self) -> str:
        return "-".join([self.model, *(f"{name}{value}" for name, value in self.kv.items())])


CASES = [
    *(Case("llama", {"bits": bits, "group_size": 32}) for bits in (8, 4)),
    *(pytest.param(Case("llama", {"bits": bits, "group_size": 32}), marks=pytest.mark.soak) for bits in (6, 5)),
    Case("llama", {"bits": 8, "start": 10}, {"head_dim": 64}),
    Case("llama", {"key_bits": 8, "value_bits": 4, "group_size": 32}),
    Case("llama", {"key_bits": 8, "group_size": 32, "start": 3}),
    Case("llama", {"value_bits": 4, "group_size": 64}, {"head_dim": 64}),
    Case("deepseek_v3", {"bits": 8, "group_size": 32}, LATENT),
    Case("deepseek_v3", {"bits": 4, "group_size": 64, "start": 20}, LATENT),  # the rotary part stays as it is
    Case("gpt_oss", {"bits": 8, "group_size": 32}),
    Case("gpt_oss", {"bits": 4, "group_size": 32, "start": 6}),
    Case("gemma3", {"bits": 8, "group_size": 32}),
    Case("falcon_h1", {"bits": 8, "group_size": 32}),
]


@pytest.fixture(scope="module", params=CASES, ids=str)
def case(request: pytest.FixtureRequest) -> Case:
    assert isinstance(request.param, Case)
    return request.param


@pytest.fixture(scope="module")
def folder(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / case.model, case.model, **case.changes)


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    source = random.Random(5)
    return [[source.randrange(1, VOCAB_SIZE) for _ in range(length)] for length in LENGTHS]


def rounded(part: Any, bits: int | None, group_size: int, offset: int, start: int) -> Any:
    """Columns [1, heads, new, dim] from `offset` on as a quantized cache remembers them."""
    import mlx.core as mx

    if bits is None or part.shape[-1] % group_size:
        return part
    remembered = mx.dequantize(*mx.quantize(part, group_size, bits), group_size, bits)
    positions = mx.arange(offset, offset + part.shape[2])[:, None]
    return mx.where(positions < start, part, remembered)


def forgetful(caches: list[Any], case: Case) -> list[Any]:
    """mlx-lm's caches, that write what a quantized cache would remember."""
    from mlx_lm.models.cache import ArraysCache, RotatingKVCache

    kv = KVCacheConfig(**case.kv)

    def leaves(cache: Any) -> Iterator[Any]:
        for member in getattr(cache, "caches", [cache]):
            if not isinstance(member, ArraysCache):
                yield member

    for cache in (leaf for each in caches for leaf in leaves(each)):
        write, start = cache.update_and_fetch, kv.start or 0
        start = 0 if isinstance(cache, RotatingKVCache) else start

        def update_and_fetch(keys: Any, values: Any, cache: Any = cache, write: Any = write, start: int = start) -> Any:
            is_latent = case.model == "deepseek_v3"
            value_bits = kv.effective_key_bits if is_latent else kv.effective_value_bits
            place = (kv.effective_group_size, cache.offset, start)
            return write(rounded(keys, kv.effective_key_bits, *place), rounded(values, value_bits, *place))

        cache.update_and_fetch = update_and_fetch
    return caches


@pytest.fixture(scope="module")
def expected(folder: Path, case: Case, prompts: list[list[int]]) -> list[list[int]]:
    import mlx.core as mx
    from mlx_lm.models.cache import make_prompt_cache
    from mlx_lm.utils import load_model

    model, _ = load_model(folder)
    outputs = []
    for prompt in prompts:
        caches, inputs, output = forgetful(make_prompt_cache(model), case), mx.array([prompt]), []
        for _ in range(NUM_OUTPUT):
            chosen = mx.argmax(model(inputs, cache=caches)[:, -1], axis=-1)
            inputs = chosen[None]
            output.append(chosen.item())
        outputs.append(output)
    return outputs


def config(folder: Path, case: Case, **scheduler: Any) -> EngineConfig:
    return EngineConfig(
        model_path=str(folder), kv_cache=KVCacheConfig(**case.kv), scheduler=SchedulerConfig(**scheduler)
    )


async def test_single(folder: Path, case: Case, prompts: list[list[int]], expected: list[list[int]]) -> None:
    async with running(config(folder, case)) as engine:
        assert engine.failure is None
        assert engine.model_info is not None and engine.model_info.dequantized_reason is None
        assert [await one(engine, prompt, NUM_OUTPUT) for prompt in prompts] == expected


async def test_batch_of_mixed_lengths(
    folder: Path, case: Case, prompts: list[list[int]], expected: list[list[int]]
) -> None:
    async with running(config(folder, case)) as engine:
        outputs = await asyncio.gather(*(one(engine, prompt, NUM_OUTPUT) for prompt in prompts))
        assert list(outputs) == expected


@in_groups
@pytest.mark.usefixtures("grouping")
async def test_joining_and_leaving_midway(
    folder: Path, case: Case, prompts: list[list[int]], expected: list[list[int]]
) -> None:
    async with running(config(folder, case, max_num_seqs=5)) as engine:

        async def after_some_steps(place: int) -> list[int]:
            target = engine.stats().num_steps + 2 * place
            while engine.stats().num_steps < target and engine.stats().num_running:
                await asyncio.sleep(0.001)
            return await one(engine, prompts[place], NUM_OUTPUT - place)

        outputs = await asyncio.gather(*(after_some_steps(place) for place in range(len(prompts))))
        assert list(outputs) == [tokens[: NUM_OUTPUT - place] for place, tokens in enumerate(expected)]


async def test_chunked_prefill_and_an_abort(
    folder: Path, case: Case, prompts: list[list[int]], expected: list[list[int]]
) -> None:
    async with running(config(folder, case, max_chunk_tokens=7)) as engine:
        doomed = engine.submit([request(prompts[7], NUM_OUTPUT)])
        streams = [engine.submit([request(prompts[place], NUM_OUTPUT)]) for place in (3, 6, 5)]
        await anext(aiter(streams[1]))  # its first token; the doomed one is under way
        await doomed.aclose()
        outputs = [(await tokens(stream))[0] for stream in (streams[0], streams[2])]
        assert outputs == [expected[3], expected[5]]


async def test_continuations_of_one_prefill_and_seeds(
    folder: Path, case: Case, prompts: list[list[int]], expected: list[list[int]]
) -> None:
    sampling = SamplingParams(temperature=0.9, seed=11)
    async with running(config(folder, case)) as engine:
        assert await tokens(engine.submit([request(prompts[6], NUM_OUTPUT, n=3)])) == [expected[6]] * 3
        alone = await one(engine, prompts[4], NUM_OUTPUT, sampling=sampling)
        mixed = await asyncio.gather(
            *(one(engine, prompt, NUM_OUTPUT, sampling=sampling) for prompt in (prompts[2], prompts[4], prompts[7]))
        )
        assert mixed[1] == alone
