"""Bad words in the sampler, against a loop over tokens; and through the engine, in a batch."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlx_backend.api.interface import EngineConfig, SamplingParams, SchedulerConfig
from tests.engine_client import GREEDY, one, request, running, tokens
from tests.sampling_rows import VOCAB, draw, row, sampler
from tests.tiny_models import write_model

pytestmark = pytest.mark.mlx

FALLING = [float(-i) for i in range(VOCAB)]
Words = tuple[tuple[int, ...], ...]


def barring(*words: tuple[int, ...], **params: Any) -> SamplingParams:
    return SamplingParams(**{"temperature": 0, **params}, bad_words=words)


def barred(words: Words, output: list[int]) -> set[int]:
    """The tokens that would end a word now, by trying each."""
    return {word[-1] for word in words if [*output, word[-1]][-len(word) :] == list(word)}


@pytest.mark.parametrize(
    ("words", "output", "drawn"),
    [
        (((0,),), (), 1),
        (((0,), (1,)), (5,), 2),
        (((3, 0),), (3,), 1),
        (((3, 0),), (4,), 0),
        (((3, 0),), (), 0),
        (((4, 3, 0), (1,)), (9, 4, 3), 2),
        (((4, 3, 0),), (4, 9, 3), 0),
        (((4, 3, 0),), (3,), 0),
        (((1, 2, 0),), (), 0),  # the prompt ends in 1, 2, and is not looked at
    ],
)
def test_what_would_end_a_word_is_not_drawn(words: Words, output: tuple[int, ...], drawn: int) -> None:
    rows = [row(GREEDY), row(barring(*words), output=output), row(barring((7,)))]
    assert draw([FALLING] * 3, *rows) == [0, drawn, 0]


def test_where_nothing_else_is_left_it_is_drawn_all_the_same() -> None:
    only = [-float("inf")] * 5 + [1.0] + [-float("inf")] * (VOCAB - 6)
    assert draw([only, FALLING], row(barring((5,))), row(barring((0,)))) == [5, 1]


def test_logits_of_the_caller_are_left_alone() -> None:
    logits = mx.array([FALLING])
    drawn = sampler(row(barring((0,), num_logprobs=1))).draw(logits)
    assert drawn.logprobs is not None
    assert (drawn.logprobs.top_ids.tolist(), drawn.tokens.tolist()) == ([[0]], [1])
    assert logits.tolist() == [FALLING]


def test_steps_that_the_host_has_not_read_are_seen_and_rows_may_change() -> None:
    source = random.Random(3)
    logits = [[source.gauss() for _ in range(VOCAB)] for _ in range(3)]
    words: list[Words] = [((0, 1), (2,), (3, 4, 5)), tuple((i, i) for i in range(VOCAB)), ((1,), (2, 2, 2, 2, 2))]
    rows = [row(barring(*each)) for each in words]
    outputs: list[list[int]] = [[], [], []]
    made = sampler(*rows)
    order = [0, 1, 2]
    for step in range(40):
        if step in (7, 20, 31):
            source.shuffle(order)
            made.set_rows([rows[i] for i in order], VOCAB)
        step_logits = [[value + source.gauss() for value in logits[i]] for i in order]
        expected = []
        for i, values in zip(order, step_logits, strict=True):
            may = set(range(VOCAB)) - barred(words[i], outputs[i])
            expected.append(max(may, key=lambda token: values[token]))
            outputs[i].append(expected[-1])
        assert made.draw(mx.array(step_logits)).tokens.tolist() == expected


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "llama", "llama")


async def test_in_a_batch_and_alone(folder: Path) -> None:
    prompt = tuple(range(1, 30))
    async with running(EngineConfig(model_path=str(folder), scheduler=SchedulerConfig(max_num_seqs=3))) as engine:
        free = await one(engine, prompt, 30)
        single, pair = barring((free[4],)), barring((free[8], free[9]), (free[2], free[3]))
        alone = {params: await one(engine, prompt, 30, sampling=params) for params in (single, pair, GREEDY)}
        requests = [(30, single), (4, GREEDY), (30, pair), (30, GREEDY), (11, pair), (30, single)]
        streams = [engine.submit([request(prompt, size, sampling=params)]) for size, params in requests]
        outputs = [(await tokens(stream))[0] for stream in streams]
    assert outputs == [alone[params][:size] for size, params in requests]
    assert free[4] in free
    assert free[4] not in alone[single]
    pairs = set(zip(alone[pair], alone[pair][1:], strict=False))
    assert not pairs & {(free[8], free[9]), (free[2], free[3])}
