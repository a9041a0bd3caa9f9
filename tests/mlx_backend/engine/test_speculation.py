"""An engine that drafts: the same tokens as one that does not, in fewer steps."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from mlx_backend.api.interface import DraftedTokens, EngineConfig, MockConfig, SamplingParams, SpeculationConfig
from tests.engine_client import request, running, tokens
from tests.ladder import END, Ladder
from tests.tiny_models import write_model

ON = SpeculationConfig(kind="ngram", max_slowdown=10.0)
"""As many drafts as can be, whatever they cost."""


PROMPTS = [tuple(range(3, 40)) * 3, (5, 6, 7) * 20, tuple(range(90, 30, -1))]


@pytest.mark.mlx
@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_the_tokens_are_the_same(temperature: float, tmp_path: Path) -> None:
    folder = write_model(tmp_path, "llama")
    sampling = SamplingParams(temperature=temperature, seed=5)

    async def answers(speculation: SpeculationConfig, predictions: list[list[int]]) -> tuple[list[list[int]], int]:
        async with running(EngineConfig(model_path=str(folder), speculation=speculation)) as engine:
            requests = [
                request(prompt, 120, sampling=sampling, n=2, prediction_ids=tuple(prediction))
                for prompt, prediction in zip(PROMPTS, predictions, strict=True)
            ]
            stream = engine.submit(requests)
            found = await tokens(stream)
            return found, stream.drafted.num_predicted_accepted

    plain, none = asyncio.run(answers(SpeculationConfig(), [[]] * 3))
    predictions = [[*output[:40], 1, *output[40:]] for output in plain[::2]]
    drafted, num_accepted = asyncio.run(answers(ON, predictions))
    assert drafted == plain
    assert none == 0
    assert num_accepted > 60


@pytest.mark.mlx
def test_a_grammar_is_followed_behind_drafts(tmp_path: Path) -> None:
    folder = write_model(tmp_path, "llama")

    async def answers(speculation: SpeculationConfig, predictions: list[list[int]]) -> tuple[list[list[int]], int]:
        async with running(EngineConfig(model_path=str(folder), speculation=speculation)) as engine:
            ladder = Ladder(length=60)
            requests = [
                request(prompt, 80, grammar=ladder, stop_ids=frozenset({END}), prediction_ids=tuple(prediction))
                for prompt, prediction in zip(PROMPTS, predictions, strict=True)
            ]
            stream = engine.submit([*requests, request(PROMPTS[0], 80)])
            return await tokens(stream), stream.drafted.num_accepted

    plain, none = asyncio.run(answers(SpeculationConfig(), [[]] * 3))
    assert all(Ladder(length=60).holds(output) for output in plain[:3])
    predictions = [[*output[:30], 299, *output[30:]] for output in plain[:3]]
    drafted, num_accepted = asyncio.run(answers(ON, predictions))
    assert drafted == plain
    assert none == 0
    assert num_accepted > 60


def test_one_request_may_be_left_out_and_every_end_is_kept() -> None:
    """What the mock writes is predicted, and comes several at a time: never more than was asked for."""

    async def answers(speculation: SpeculationConfig, predictions: dict[int, tuple[int, ...]]) -> list[list[int]]:
        mock = MockConfig(itl_s=0.001)
        async with running(
            EngineConfig(model_path="mock", backend="mock", mock=mock, speculation=speculation)
        ) as engine:
            sizes = (1, 2, 7, 60, 300)
            requests = [
                request((65 + i, 66), size, prediction_ids=predictions.get(i, ()), speculates=i != 3)
                for i, size in enumerate(sizes)
            ]
            streams = [engine.submit([each]) for each in requests]
            found = [(await tokens(stream))[0] for stream in streams]
            if predictions:
                assert streams[3].drafted == DraftedTokens()
                assert streams[4].drafted.num_predicted_accepted > 100
                assert engine.stats().speculation.drafted.num_accepted > 100
            return found

    plain = asyncio.run(answers(SpeculationConfig(), {}))
    assert [len(output) for output in plain] == [1, 2, 7, 60, 300]
    drafted = asyncio.run(answers(ON, {i: tuple(output) for i, output in enumerate(plain)}))
    assert drafted == plain
