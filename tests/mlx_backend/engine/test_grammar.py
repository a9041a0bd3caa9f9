"""Rows that follow a grammar, in a batch with rows that do not: the ones obey, the others notice nothing."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest

from mlx_backend.api.interface import EngineConfig, SamplingParams, SchedulerConfig
from mlx_backend.runners.mlx import MLXRunner
from tests.engine_client import one, request, running, tokens
from tests.ladder import END, Ladder
from tests.tiny_models import VOCAB_SIZE, write_model

pytestmark = pytest.mark.mlx


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "llama", "llama")


def prompts(count: int) -> list[tuple[int, ...]]:
    source = random.Random(count)
    return [tuple(source.randrange(1, VOCAB_SIZE) for _ in range(source.randint(1, 60))) for _ in range(count)]


def config(folder: Path, **scheduler: Any) -> EngineConfig:
    return EngineConfig(model_path=str(folder), scheduler=SchedulerConfig(**scheduler))


async def test_rows_with_a_grammar_follow_it_and_the_others_are_as_ever(folder: Path) -> None:
    async with running(config(folder)) as engine:
        expected = await asyncio.gather(*(one(engine, prompt, 30) for prompt in prompts(6)))
        ladders = [Ladder(length=5 + i, first_free=i % 3) for i in range(6)]
        led = [one(engine, p, 40, grammar=g, stop_ids={END}) for p, g in zip(prompts(6), ladders, strict=True)]
        plain = [one(engine, prompt, 30) for prompt in prompts(6)]
        answers = await asyncio.gather(*led, *plain)
        assert answers[6:] == expected
        for ladder, output in zip(ladders, answers[:6], strict=True):
            assert ladder.holds(output)
            assert output[-1] == END
            assert len(output) == ladder.length + 1
        alone = [await one(engine, p, 40, grammar=g, stop_ids={END}) for p, g in zip(prompts(6), ladders, strict=True)]
        assert alone == answers[:6]


async def test_every_continuation_has_a_state_of_its_own_and_seeds_hold(folder: Path) -> None:
    sampling = SamplingParams(temperature=1.0, seed=5)
    ladder = Ladder(length=12)
    asked = request(prompts(1)[0], 30, n=4, grammar=ladder, stop_ids={END}, sampling=sampling)
    async with running(config(folder, max_num_seqs=3)) as engine:
        first, again = await tokens(engine.submit([asked])), await tokens(engine.submit([asked]))
    assert first == again
    assert len({tuple(output) for output in first}) > 1
    assert all(ladder.holds(output) and len(output) == 13 for output in first)


async def test_a_grammar_goes_on_where_it_was_after_memory_ran_out(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ladder, asked = Ladder(length=25), prompts(4)
    async with running(config(folder)) as engine:
        expected = [await one(engine, prompt, 40, grammar=ladder, stop_ids={END}) for prompt in asked]
        whole, counted = MLXRunner._start, [0]

        def failing(self: MLXRunner, *given: Any) -> Any:
            counted[0] += 1
            drawn = whole(self, *given)
            if counted[0] == 11:
                raise RuntimeError("[METAL] Command buffer execution failed: Insufficient Memory (00000008)")
            return drawn

        monkeypatch.setattr(MLXRunner, "_start", failing)
        answers = await asyncio.gather(
            *(one(engine, prompt, 40, grammar=ladder, stop_ids={END}) for prompt in asked), return_exceptions=True
        )
    whole_answers = [pair for pair in zip(answers, expected, strict=True) if not isinstance(pair[0], BaseException)]
    assert len(whole_answers) == 3
    assert all(answer == right for answer, right in whole_answers)


async def test_a_state_that_is_free_for_a_while_is_not_asked_before_and_the_tokens_are_the_same(folder: Path) -> None:
    """Rows come and go meanwhile."""
    free = [0, 1, 2, 9, 20]
    telling, silent = ([Ladder(length=26, first_free=each, tells=tells) for each in free] for tells in (True, False))
    async with running(config(folder, max_num_seqs=4)) as engine:
        answers = []
        for ladders in (telling, silent):
            led = [one(engine, p, 40, grammar=g, stop_ids={END}) for p, g in zip(prompts(5), ladders, strict=True)]
            plain = [one(engine, prompt, size) for prompt, size in zip(prompts(4), (3, 11, 17, 30), strict=True)]
            answers.append(await asyncio.gather(*led, *plain))
    assert answers[0] == answers[1]
    assert [ladder.num_asked for ladder in telling] == [28 - each for each in free]
    assert all(ladder.holds(output) for ladder, output in zip(silent, answers[0], strict=False))
