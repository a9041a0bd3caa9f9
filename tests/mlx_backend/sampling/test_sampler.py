"""The sampler against plain numpy-like arithmetic, row by row, and against the distribution it should draw from."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import mlx.core as mx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_backend.api.interface import SamplingParams
from mlx_backend.sampling.filters import filter_few, filter_min_p, filter_top_k, filter_top_p
from mlx_backend.sampling.keys import base_key, step_key
from mlx_backend.sampling.penalties import Penalties
from tests.sampling_rows import VOCAB, draw, row, sampler

pytestmark = pytest.mark.mlx

logit_rows = st.lists(st.integers(-800, 800), min_size=VOCAB, max_size=VOCAB, unique=True).map(
    lambda hundredths: [number / 100 for number in hundredths]  # apart by more than rounding
)


def kept_by_hand(logits: list[float], top_k: int, top_p: float) -> set[int]:
    order = sorted(range(len(logits)), key=lambda i: -logits[i])[:top_k]
    weights = [math.exp(logits[i] - logits[order[0]]) for i in order]
    kept, mass = set(), 0.0
    for i, weight in zip(order, weights, strict=True):
        if mass / sum(weights) >= top_p:
            break
        kept.add(i)
        mass += weight
    return kept


filtered_rows = st.tuples(logit_rows, st.integers(1, VOCAB), st.sampled_from([0.1, 0.35, 0.7, 0.93, 1.0]))


@given(rows=st.lists(filtered_rows, min_size=1))
@settings(max_examples=60, deadline=None)
def test_top_k_and_top_p(rows: list[tuple[list[float], int, float]]) -> None:
    logits = mx.array([row[0] for row in rows])
    top_k, top_p = mx.array([[row[1]] for row in rows]), mx.array([[row[2]] for row in rows])
    few = filter_few(logits, top_k, top_p, VOCAB).tolist()
    assert filter_top_p(filter_top_k(logits, top_k), top_p).tolist() == few
    for (values, top_k_here, top_p_here), filtered in zip(rows, few, strict=True):
        kept = {i for i, value in enumerate(filtered) if value > -math.inf}
        least, nearly = (kept_by_hand(values, top_k_here, top_p_here + by) for by in (-1e-5, 1e-5))
        assert least <= kept <= nearly
        assert all(filtered[i] == pytest.approx(values[i]) for i in kept)


def test_min_p() -> None:
    logits = mx.log(mx.array([[0.5, 0.3, 0.15, 0.05]] * 3))
    out = filter_min_p(logits, mx.array([[0.0], [0.25], [1.0]])).tolist()
    assert [sum(value > -math.inf for value in values) for values in out] == [4, 3, 1]


def test_greedy_takes_the_largest_in_any_company() -> None:
    logits = [[float(i == 3) for i in range(VOCAB)], [float(i == 7) for i in range(VOCAB)]]
    assert draw(logits, row(SamplingParams(temperature=0)), row(SamplingParams(temperature=5, seed=1)))[0] == 3
    assert draw(logits, row(SamplingParams(temperature=0)), row(SamplingParams(temperature=0))) == [3, 7]


def test_the_draw_follows_the_distribution() -> None:
    """5,000 draws; each share within 4 standard deviations of its probability."""
    probabilities = [0.5, 0.25, 0.15, 0.1] + [0.0] * (VOCAB - 4)
    logits = [[math.log(p) if p else -1e9 for p in probabilities]] * 500
    counts: Counter[int] = Counter()
    for seed in range(10):
        rows = [row(SamplingParams(temperature=1, seed=1000 * seed + i)) for i in range(500)]
        counts.update(draw(logits, *rows))
    for token, probability in enumerate(probabilities):
        deviation = math.sqrt(probability * (1 - probability) / 5000)
        assert abs(counts[token] / 5000 - probability) <= 4 * deviation + 1e-9


def test_positions_of_one_seed_follow_the_distribution_too() -> None:
    logits = [[math.log(0.7), math.log(0.3)] + [-1e9] * (VOCAB - 2)]
    params = SamplingParams(temperature=1, seed=5)
    ones = sum(draw(logits, row(params, output=(0,) * position))[0] for position in range(1000))
    assert abs(ones / 1000 - 0.3) < 4 * math.sqrt(0.21 / 1000)


def test_temperature_sharpens_and_flattens() -> None:
    logits = [[1.0, 0.0] + [-1e9] * (VOCAB - 2)] * 400
    cold = draw(logits, *(row(SamplingParams(temperature=0.1, seed=i)) for i in range(400)))
    hot = draw(logits, *(row(SamplingParams(temperature=100, seed=i)) for i in range(400)))
    assert sum(cold) < 5
    assert 150 < sum(hot) < 250


def test_logit_bias() -> None:
    logits = [[0.0] * VOCAB] * 2
    biased = SamplingParams(temperature=0, logit_bias=((4, 3.0), (5, 2.0), (4, 0.5)))
    assert draw(logits, row(SamplingParams(temperature=0)), row(biased)) == [0, 4]


def test_presence_and_frequency_count_the_output_only() -> None:
    logits = [[5.0, 4.9, 4.8] + [0.0] * (VOCAB - 3)]
    presence = SamplingParams(temperature=0, presence_penalty=1.0)
    frequency = SamplingParams(temperature=0, frequency_penalty=0.06)
    assert draw(logits, row(presence, prompt=(0,))) == [0]
    assert draw(logits, row(presence, output=(0,))) == [1]
    assert draw(logits, row(frequency, output=(0,))) == [0]
    assert draw(logits, row(frequency, output=(0, 0))) == [1]
    assert draw(logits, row(frequency, output=(0, 0, 0, 0, 1, 1))) == [2]


def test_repetition_counts_the_prompt_and_minds_the_sign() -> None:
    params = SamplingParams(temperature=0, repetition_penalty=2.0)
    assert draw([[5.0, 3.0] + [0.0] * (VOCAB - 2)], row(params, prompt=(0,))) == [1]
    assert draw([[-1.0, -1.5] + [-9.0] * (VOCAB - 2)], row(params, prompt=(0,))) == [1]


def test_counts_go_on_over_steps_and_over_a_change_of_rows() -> None:
    """The sampler counts tokens the host has not read, also of rows that stay while others come and go."""
    params = SamplingParams(temperature=0, frequency_penalty=1.5)
    staying, other = row(params), row(params)
    made = sampler(other, staying)
    logits = mx.array([[5.0, 4.0, 3.0] + [-50.0] * (VOCAB - 3)] * 2)
    picked = [made.draw(logits).tokens.tolist()[1] for _ in range(2)]
    made.set_rows([staying, row(SamplingParams(temperature=0))], VOCAB)
    picked += [made.draw(logits).tokens.tolist()[0] for _ in range(2)]
    assert picked == [0, 1, 0, 2]


@given(logits=logit_rows, num_top=st.integers(0, VOCAB))
@settings(max_examples=30, deadline=None)
def test_logprobs_are_of_the_models_own_distribution(logits: list[float], num_top: int) -> None:
    params = SamplingParams(temperature=0, num_logprobs=num_top, logit_bias=((3, 100.0),))
    rows = [row(SamplingParams(temperature=0)), row(params)]
    drawn = sampler(*rows).draw(mx.array([logits, logits]))
    assert drawn.logprobs is not None
    read = drawn.logprobs.read(rows)
    total = math.log(sum(math.exp(value) for value in logits))
    assert set(read) == {1}
    assert drawn.tokens.tolist()[1] == 3
    assert read[1].logprob == pytest.approx(logits[3] - total, abs=1e-4)
    order = sorted(range(VOCAB), key=lambda i: -logits[i])[:num_top]
    assert [token for token, _ in read[1].top] == order
    assert [value for _, value in read[1].top] == pytest.approx([logits[i] - total for i in order], abs=1e-4)


def test_nobody_asked_nothing_is_computed() -> None:
    drawn = sampler(row(SamplingParams(temperature=0))).draw(mx.zeros((1, VOCAB)))
    assert drawn.logprobs is None
    assert len(drawn.arrays) == 1


def test_keys_differ_by_seed_ordinal_and_position_and_repeat() -> None:
    places = itertools.product(range(9), repeat=3)
    keys = [step_key(base_key(seed, ordinal), position) for seed, ordinal, position in places]
    assert len(set(keys)) == 9**3
    assert base_key(3, 1) == base_key(3, 1)
    assert base_key(None, 0) != base_key(None, 0)
    assert base_key(-1, 0) == base_key(2**64 - 1, 0)


def test_presence_counts_a_token_once_and_frequency_as_often_as_it_is_there() -> None:
    rows = [
        row(SamplingParams(presence_penalty=1.0), output=(3, 3, 3, 4)),
        row(SamplingParams(frequency_penalty=1.0), output=(3, 3, 3, 4)),
    ]
    out = Penalties(rows, VOCAB, None).apply(mx.zeros((2, VOCAB)))
    assert [out[0, token].item() for token in (3, 4, 5)] == [-1.0, -1.0, 0.0]
    assert [out[1, token].item() for token in (3, 4, 5)] == [-3.0, -1.0, 0.0]


def test_each_row_keeps_its_own_counts_when_others_leave() -> None:
    params = SamplingParams(frequency_penalty=1.0)
    first, second, third = (row(params, output=(token,) * token) for token in (2, 3, 4))
    before = Penalties([first, second, third], VOCAB, None)
    after = Penalties([third, second], VOCAB, before)
    out = after.apply(mx.zeros((2, VOCAB)))
    assert [out[0, token].item() for token in (2, 3, 4)] == [0.0, 0.0, -4.0]
    assert [out[1, token].item() for token in (2, 3, 4)] == [0.0, -3.0, 0.0]
