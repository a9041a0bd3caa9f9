"""Steps with drafts: rows get, token for token, what they get without, whatever is drafted and refused."""

from __future__ import annotations

import random
from pathlib import Path

import mlx.core as mx
import pytest

from mlx_backend.api.interface import EngineConfig, KVCacheConfig, LoadProgress, SamplingParams, SpeculationConfig
from mlx_backend.core.step import Chunk, Span
from mlx_backend.runners.mlx import MLXRunner
from tests.drafted_runner import Driver, corrupted
from tests.grouped_rows import grouping as grouping
from tests.grouped_rows import in_groups
from tests.tiny_models import write_model

pytestmark = pytest.mark.mlx

KINDS = ("llama", "deepseek_v3", "gpt_oss", "gemma3", "falcon_h1", "mamba2")
PROMPTS = [[(7 * i + 3 * row) % 300 for i in range(length)] for row, length in enumerate((1, 40, 9, 70))]
GREEDY = SamplingParams(temperature=0)
NUM_TOKENS = 32


def load(folder: Path, kv_cache: KVCacheConfig | None = None) -> MLXRunner:
    speculation = SpeculationConfig(kind="ngram")
    config = EngineConfig(model_path=str(folder), kv_cache=kv_cache or KVCacheConfig(), speculation=speculation)
    runner = MLXRunner(config)
    info = runner.load(_ignore)
    assert info.max_drafts == 8, info.no_drafts_reason
    return runner


def _ignore(progress: LoadProgress) -> None:
    pass


def alone(runner: MLXRunner, sampling: SamplingParams, num_tokens: int = NUM_TOKENS) -> list[list[int]]:
    """What each prompt is continued with, without drafts and without another row."""
    found = []
    for number in range(len(PROMPTS)):
        driver = Driver(runner, PROMPTS, sampling)
        driver.join(number)
        while len(driver.outputs[number]) < num_tokens:
            driver.step()
        found.append(driver.outputs[number])
        runner.idle()
    return found


def drafted(runner: MLXRunner, sampling: SamplingParams, right: list[list[int]], seed: int) -> Driver:
    """All prompts with drafts that are partly right; rows join, leave and come back meanwhile."""
    source, driver = random.Random(seed), Driver(runner, PROMPTS, sampling)
    driver.join(1, 3)
    done: dict[int, list[int]] = {}
    while driver.outputs:
        if driver.num_steps == 3:
            driver.join(0, 2)
        drafts = {
            number: corrupted(right[number][len(outputs) :], source, 6)
            for number, outputs in driver.outputs.items()
            if source.random() < 0.8
        }
        driver.step(drafts)
        for number in [n for n, outputs in driver.outputs.items() if len(outputs) >= NUM_TOKENS]:
            done |= driver.leave(number)
    driver.outputs = done
    return driver


def check(runner: MLXRunner, sampling: SamplingParams, seed: int = 0) -> None:
    right = alone(runner, sampling, NUM_TOKENS + 8)
    driver = drafted(runner, sampling, right, seed)
    for number, outputs in driver.outputs.items():
        assert outputs == right[number][: len(outputs)], number
    assert driver.num_steps < 2 * NUM_TOKENS, "drafts were not taken"


@in_groups
@pytest.mark.parametrize("kind", KINDS)
def test_drafts_change_no_token(kind: str, grouping: list[int], tmp_path: Path) -> None:
    check(load(write_model(tmp_path, kind)), GREEDY)


@pytest.mark.parametrize(
    ("kind", "kv_cache"),
    [
        ("llama", KVCacheConfig(bits=8, group_size=32)),
        ("llama", KVCacheConfig(bits=4, group_size=32, start=44)),
        ("deepseek_v3", KVCacheConfig(bits=8, group_size=32)),
        ("gpt_oss", KVCacheConfig(bits=8, group_size=32)),
    ],
)
@in_groups
def test_drafts_change_no_token_of_a_quantized_cache(
    kind: str, kv_cache: KVCacheConfig, grouping: list[int], tmp_path: Path
) -> None:
    wide = {"head_dim": 32} if kind != "deepseek_v3" else {"qk_rope_head_dim": 32}
    check(load(write_model(tmp_path, kind, **wide), kv_cache), GREEDY, seed=1)


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingParams(temperature=0.8, top_p=0.9, top_k=40),
        SamplingParams(temperature=0, repetition_penalty=1.3, presence_penalty=0.4, frequency_penalty=0.2),
        SamplingParams(temperature=0, dry_multiplier=2.0, dry_range=64, dry_breaker_ids=(7,)),
        SamplingParams(temperature=0.9, bad_words=((3, 9), (5,)), xtc_probability=0.5, xtc_threshold=0.01),
        SamplingParams(temperature=0.7, repetition_penalty=1.1, dry_multiplier=1.0, min_p=0.02, seed=7),
    ],
)
def test_drafts_change_no_draw(sampling: SamplingParams, model: MLXRunner) -> None:
    check(model, sampling, seed=2)


def test_logprobs_are_those_of_single_steps(model: MLXRunner) -> None:
    sampling = SamplingParams(temperature=0, num_logprobs=2)
    right = alone(model, sampling)
    reference, driver = Driver(model, PROMPTS, sampling), Driver(model, PROMPTS, sampling)
    reference.join(1)
    for _ in range(6):
        reference.step()
    model.idle()
    driver.join(1)
    driver.step({1: tuple(right[1][:3])})
    driver.step({1: (*right[1][4:5], 299)})
    assert driver.outputs[1] == right[1][:6]
    for ours, single in zip(driver.logprobs[1], reference.logprobs[1], strict=True):
        assert [token for token, _ in ours.top] == [token for token, _ in single.top]
        assert ours.logprob == pytest.approx(single.logprob, abs=1e-3)
    model.idle()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> MLXRunner:
    return load(write_model(tmp_path_factory.mktemp("model"), "llama"))


@pytest.mark.parametrize("kind", ["llama", "gpt_oss", "falcon_h1"])
def test_caches_are_those_of_a_prompt_of_the_same_tokens(kind: str, tmp_path: Path) -> None:
    """What is kept of a row after refused drafts is what its tokens come to when they are computed as a prompt."""
    runner = load(write_model(tmp_path, kind))
    right = alone(runner, GREEDY, NUM_TOKENS + 8)
    driver, source = Driver(runner, PROMPTS, GREEDY), random.Random(3)
    driver.join(1, 2)
    for _ in range(12):
        driver.step({n: corrupted(right[n][len(outputs) :], source, 5) for n, outputs in driver.outputs.items()})
    assert runner.blocks is not None
    for number, outputs in list(driver.outputs.items()):
        whole = [*PROMPTS[number], *outputs][:-1]
        spans = [Span(0, len(whole), with_state=not runner.blocks.cuts)]
        (kept,) = runner.blocks.take(number, spans)
        runner.prefill(Chunk(prompt=500 + number, start=0, token_ids=tuple(whole), num_prompt_tokens=len(whole) + 1))
        (computed,) = runner.blocks.take(500 + number, spans)
        held, expected = runner.blocks._blocks[kept.id], runner.blocks._blocks[computed.id]
        assert len(held.arrays) == len(expected.arrays)
        for ours, theirs in zip(held.arrays, expected.arrays, strict=True):
            assert ours.shape == theirs.shape
            assert mx.allclose(ours, theirs, atol=2e-4, rtol=1e-3), number
