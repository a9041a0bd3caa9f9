"""Tokens that may not be drawn, and the length before which nothing ends: in the sampler and through the engine."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import pytest

from mlx_backend.api.interface import EngineConfig, SamplingParams
from mlx_backend.sampling.masks import mask_logits, row_tokens
from tests.engine_client import GREEDY, one, read, request, running, tokens
from tests.sampling_rows import VOCAB, draw, row, sampler
from tests.tiny_models import write_model

pytestmark = pytest.mark.mlx

FALLING = [float(-i) for i in range(VOCAB)]


def test_no_stop_id_before_the_least_length() -> None:
    short = row(GREEDY, stop_ids=frozenset({0, 1, 999}), min_tokens=2)
    long = row(GREEDY, output=(5,), stop_ids=frozenset({0}), min_tokens=1)
    free = row(GREEDY, stop_ids=frozenset({0}))
    made = sampler(short, long, free)
    drawn = []
    for _ in range(3):
        drawn.append(made.draw(mx.array([FALLING] * 3)).tokens.tolist())
        for each in (short, long, free):
            each.num_started_tokens += 1
    assert drawn == [[2, 0, 0], [2, 0, 0], [0, 0, 0]]


def test_a_bias_does_not_shorten_the_least_length() -> None:
    biased = SamplingParams(temperature=1, seed=3, logit_bias=((0, 100.0),))
    assert draw([FALLING], row(biased, stop_ids=frozenset({0}))) == [0]
    assert draw([FALLING], row(biased, stop_ids=frozenset({0}), min_tokens=1)) != [0]


def test_a_row_that_can_draw_nothing_but_its_end_ends() -> None:
    logits = [[-float("inf")] * 5 + [1.0] + [-float("inf")] * (VOCAB - 6), FALLING]
    rows = [row(GREEDY, stop_ids=frozenset({5}), min_tokens=3), row(GREEDY, stop_ids=frozenset({0}), min_tokens=3)]
    assert draw(logits, *rows) == [5, 1]


def test_only_allowed_tokens() -> None:
    asking = SamplingParams(temperature=0, allowed_token_ids=(4, 7))
    assert draw([FALLING] * 3, row(GREEDY), row(asking), row(asking, stop_ids=frozenset({4}), min_tokens=1)) == [
        0,
        4,
        7,
    ]
    rows = [row(SamplingParams(temperature=100, seed=i, allowed_token_ids=(4, 7))) for i in range(50)]
    assert set(draw([FALLING] * 50, *rows)) == {4, 7}


def test_logits_of_the_caller_are_left_alone() -> None:
    """They are what log-probabilities are taken of."""
    logits = mx.array([FALLING])
    asking = SamplingParams(temperature=0, allowed_token_ids=(4,), dry_multiplier=1.0, num_logprobs=1)
    drawn = sampler(row(asking, stop_ids=frozenset({2}), min_tokens=3)).draw(logits)
    assert drawn.logprobs is not None
    assert drawn.logprobs.top_ids.tolist() == [[0]]
    assert logits.tolist() == [FALLING]


def test_nobody_asked_nothing_is_done() -> None:
    logits = mx.array([FALLING])
    made = sampler(row(GREEDY, stop_ids=frozenset({0})))
    assert made._masks.apply(logits) is logits
    assert len(made.draw(logits).arrays) == 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "llama", "llama")


PROMPT = tuple(range(1, 30))


async def test_a_model_ends_at_a_stop_id_and_not_before_the_least_length(folder: Path) -> None:
    async with running(EngineConfig(model_path=str(folder))) as engine:
        free = await one(engine, PROMPT, 12)
        stop = free[3]
        place = free.index(stop)
        stops = frozenset({stop, 10_000})  # a tokenizer may name an end token that the model has not
        streams = [
            engine.submit([request(PROMPT, 12, stop_ids=stops)]),
            engine.submit([request(PROMPT, 12, stop_ids=stops, min_tokens=8)]),
            engine.submit([request(PROMPT, 12, stop_ids=stops, min_tokens=12)]),
            engine.submit([request(PROMPT, 12)]),
        ]
        events = [(await read(stream))[0] for stream in streams]
        ended, later, never, mate = ([event.token_id for event in each] for each in events)
        assert ended == free[: place + 1]
        assert events[0][-1].finish_reason == "stop"
        assert later[:place] == free[:place]
        assert stop not in later[:8]
        assert (len(later) == 12 or later[-1] == stop) and len(later) > 8
        assert (len(never), stop in never, events[2][-1].finish_reason) == (12, False, "length")
        assert mate == free


async def test_repetitions_give_way_in_a_batch_and_the_mates_do_not_notice(folder: Path) -> None:
    """DRY's state through the engine's own steps and changes of rows: as a row computed alone."""
    async with running(EngineConfig(model_path=str(folder))) as engine:
        dry = SamplingParams(temperature=0, dry_multiplier=4.0, dry_allowed_length=1, dry_range=64)
        looping = (5, 6, 7) * 6
        free, alone = await one(engine, looping, 40), await one(engine, looping, 40, sampling=dry)
        requests = [(3, GREEDY), (40, dry), (7, dry), (40, GREEDY), (40, dry)]
        streams = [engine.submit([request(looping, size, sampling=params)]) for size, params in requests]
        outputs = [(await tokens(stream))[0] for stream in streams]
    for output, (size, params) in zip(outputs, requests, strict=True):
        assert output == (alone if params is dry else free)[:size]
    assert alone != free


def test_tokens_behind_the_end_of_a_mask_are_not_drawn() -> None:
    """A model may have more tokens than its tokenizer, and so than a grammar."""
    logits = mx.zeros((2, 70))
    masked = mask_logits(logits, [(1, bytes([0b10000010]))])
    assert [place for place in range(70) if masked[1, place].item() == 0.0] == [1, 7]
    assert masked[0].tolist() == logits[0].tolist()
    none = mask_logits(logits, [(0, b""), (1, b"\xff" * 99)])
    assert mx.max(none[0]).item() == -float("inf")
    assert none[1].tolist() == logits[1].tolist()


def test_ids_that_the_model_has_not_are_no_columns() -> None:
    found = row_tokens([{3, 99}, (), {12, 11}], 12)
    assert found is not None
    assert (found[0].tolist(), found[1].tolist()) == ([0, 2], [3, 11])
    assert row_tokens([{12}, ()], 12) is None
