"""The further filters against plain arithmetic; who did not ask for one, and seeds, in any company."""

from __future__ import annotations

import dataclasses
import math
from itertools import pairwise
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_backend.api.interface import SamplingParams
from mlx_backend.core.row import Row
from mlx_backend.sampling import filters
from mlx_backend.sampling.keys import base_key, step_chance
from tests.sampling_rows import VOCAB, draw, row, sampler

pytestmark = pytest.mark.mlx

NEVER = -math.inf
Numbers = np.ndarray[Any, np.dtype[np.float64]]

logit_rows = st.lists(st.integers(-800, 800), min_size=VOCAB, max_size=VOCAB, unique=True).flatmap(
    lambda numbers: st.sets(st.integers(0, VOCAB - 1), max_size=VOCAB - 2).map(
        lambda gone: [NEVER if i in gone else number / 100 for i, number in enumerate(numbers)]
    )
)


def column(*values: Any) -> mx.array:
    return mx.array(values)[:, None]


def kept(filtered: mx.array) -> list[set[int]]:
    return [{i for i, value in enumerate(values) if value > NEVER} for values in filtered.tolist()]


def softmax(logits: list[float]) -> Numbers:
    weights = np.exp(np.array(logits) - max(logits))
    return np.asarray(weights / weights.sum())


def typical_by_hand(logits: list[float], typical_p: float) -> set[int]:
    p = softmax(logits)
    left = [i for i in range(len(p)) if logits[i] > NEVER]
    entropy = -sum(p[i] * math.log(p[i]) for i in left)
    result: set[int] = set()
    mass = 0.0
    for i in sorted(left, key=lambda i: abs(-math.log(p[i]) - entropy)):
        if mass >= typical_p:
            break
        result.add(i)
        mass += p[i]
    return result


@given(rows=st.lists(st.tuples(logit_rows, st.sampled_from([0.1, 0.35, 0.7, 0.93, 1.0])), min_size=1, max_size=4))
@settings(max_examples=80, deadline=None)
def test_typical_p(rows: list[tuple[list[float], float]]) -> None:
    out = filters.filter_typical_p(mx.array([logits for logits, _ in rows]), column(*(p for _, p in rows)))
    for (logits, typical_p), found in zip(rows, kept(out), strict=True):
        p = softmax(logits)
        distance = sorted(abs(-math.log(p[i]) - typical_entropy(p)) for i in range(VOCAB) if p[i] > 0)
        if any(b - a < 1e-4 for a, b in pairwise(distance)):
            continue  # rounding decides which of two comes first
        assert typical_by_hand(logits, typical_p - 1e-5) <= found <= typical_by_hand(logits, typical_p + 1e-5)


def typical_entropy(p: Numbers) -> float:
    return -sum(value * math.log(value) for value in p.tolist() if value > 0)


def test_typical_p_leaves_out_the_likeliest_where_it_says_too_little() -> None:
    """The entropy is 1.33: the 0.4 token's surprise of 0.92 is further from it than the 0.2 tokens' 1.61."""
    logits = mx.log(mx.array([[0.4, 0.2, 0.2, 0.2]] * 2))
    assert kept(filters.filter_typical_p(logits, column(0.5, 0.7))) == [{1, 2, 3}, {0, 1, 2, 3}]


@given(rows=st.lists(st.tuples(logit_rows, st.sampled_from([0.0, 0.3, 1.0, 2.5])), min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_top_n_sigma(rows: list[tuple[list[float], float]]) -> None:
    out = filters.filter_top_n_sigma(mx.array([logits for logits, _ in rows]), column(*(n for _, n in rows)))
    for (logits, n), found in zip(rows, kept(out), strict=True):
        left = {i for i, value in enumerate(logits) if value > NEVER}
        threshold = max(logits) - n * np.std([logits[i] for i in left])
        certain = {i for i in left if logits[i] > threshold + 1e-4}
        assert certain <= found <= {i for i in left if logits[i] > threshold - 1e-4} if n else found == left


xtc_rows = st.tuples(logit_rows, st.sampled_from([0.0, 0.02, 0.1, 0.3, 0.6]), st.booleans())


@given(rows=st.lists(xtc_rows, min_size=1, max_size=4), kept_ids=st.sets(st.integers(0, VOCAB - 1), max_size=3))
@settings(max_examples=80, deadline=None)
def test_xtc(rows: list[tuple[list[float], float, bool]], kept_ids: set[int]) -> None:
    """The first row keeps some tokens whatever comes."""
    keeping = (mx.zeros((len(kept_ids),), dtype=mx.int32), mx.array(sorted(kept_ids), dtype=mx.int32))
    out = filters.filter_xtc(
        mx.array([logits for logits, _, _ in rows]),
        column(*(threshold for _, threshold, _ in rows)),
        column(*(is_active for _, _, is_active in rows)),
        keeping if kept_ids else None,
    )
    for place, ((logits, threshold, is_active), found) in enumerate(zip(rows, kept(out), strict=True)):
        p = softmax(logits)
        left = {i for i in range(VOCAB) if logits[i] > NEVER}
        if min(abs(p[i] - threshold) for i in left) < 1e-6:
            continue  # rounding decides
        likely = sorted((i for i in left if p[i] >= threshold), key=lambda i: -p[i])
        taken = set(likely[:-1]) - (kept_ids if place == 0 else set()) if is_active else set()
        assert found == left - taken


def test_the_token_at_the_threshold_is_one_of_the_likely() -> None:
    logits = mx.log(mx.array([[0.5, 0.25, 0.25]]))
    out = filters.filter_xtc(logits, column(0.25), column(True), None)
    assert kept(out) == [{1, 2}]


def test_xtc_acts_as_often_as_its_probability_says() -> None:
    """2,000 rows, of which a share cannot draw the likelier token and the others can; 4 standard deviations."""
    logits = [[math.log(0.6), math.log(0.4)] + [-1e9] * (VOCAB - 2)] * 2000
    params = SamplingParams(xtc_probability=0.3, xtc_threshold=0.1)
    seconds = sum(draw(logits, *(row(dataclasses.replace(params, seed=i)) for i in range(2000))))
    expected = 0.3 + 0.7 * 0.4
    assert abs(seconds / 2000 - expected) < 4 * math.sqrt(expected * (1 - expected) / 2000)


def test_xtc_never_takes_what_ends_the_row_nor_what_is_kept() -> None:
    logits = [[3.0, 2.5, 2.0] + [-1e9] * (VOCAB - 3)] * 60
    params = [SamplingParams(xtc_probability=1.0, xtc_threshold=0.01, seed=i) for i in range(20)]
    rows = [row(p) for p in params]
    rows += [row(p, stop_ids=frozenset({0, 500})) for p in params]
    rows += [row(dataclasses.replace(p, xtc_kept_ids=(1,))) for p in params]
    drawn = draw(logits, *rows)
    assert [set(drawn[:20]), set(drawn[20:40]), set(drawn[40:])] == [{2}, {0, 2}, {1, 2}]


def test_xtc_says_nothing_to_greedy_rows() -> None:
    logits = [[5.0, 4.0] + [0.0] * (VOCAB - 2)]
    assert draw(logits, row(SamplingParams(temperature=0, xtc_probability=1.0, xtc_threshold=0.01))) == [0]


def test_chances_are_even_and_repeat() -> None:
    chances = [step_chance(base_key(7, 0), position) for position in range(4000)]
    assert chances == [step_chance(base_key(7, 0), position) for position in range(4000)]
    assert all(0 <= chance < 1 for chance in chances)
    assert np.histogram(chances, bins=4, range=(0, 1))[0] == pytest.approx([1000] * 4, abs=4 * math.sqrt(750))


FULL_VOCAB = 50_000


@pytest.mark.parametrize(
    "apply",
    [
        lambda x: filters.filter_few(x, column(FULL_VOCAB, 50), column(1.0, 0.5), 50),
        lambda x: filters.filter_top_k(x, column(FULL_VOCAB, 50)),
        lambda x: filters.filter_top_p(x, column(1.0, 0.5)),
        lambda x: filters.filter_min_p(x, column(0.0, 0.1)),
        lambda x: filters.filter_typical_p(x, column(1.0, 0.5)),
        lambda x: filters.filter_top_n_sigma(x, column(0.0, 1.0)),
        lambda x: filters.filter_xtc(x, column(0.0, 0.0), column(False, True), None),
    ],
)
def test_a_filter_leaves_a_neutral_row_to_the_bit(apply: Any) -> None:
    """Of a large vocabulary, whose summed probabilities need not be 1."""
    logits = mx.random.normal((2, FULL_VOCAB), key=mx.random.key(3)) * 4
    out = apply(mx.array(logits))
    assert mx.array_equal(out[0], logits[0])
    assert not mx.array_equal(out[1], logits[1])


ANYTHING = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.7, 1.0, 1.5]),
    top_p=st.sampled_from([1.0, 0.8]),
    top_k=st.sampled_from([0, 4, 9]),
    min_p=st.sampled_from([0.0, 0.1]),
    typical_p=st.sampled_from([1.0, 0.6]),
    top_n_sigma=st.sampled_from([0.0, 1.0]),
    xtc_probability=st.sampled_from([0.0, 0.5, 1.0]),
    xtc_threshold=st.sampled_from([0.05, 0.2]),
    xtc_kept_ids=st.sampled_from([(), (3,)]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    frequency_penalty=st.sampled_from([0.0, 0.4]),
    dry_multiplier=st.sampled_from([0.0, 0.8]),
    dry_range=st.sampled_from([2, 7, 30]),
    dry_breaker_ids=st.sampled_from([(), (5,), (5, 6)]),
    allowed_token_ids=st.sampled_from([(), (1, 2, 3, 4, 5)]),
    seed=st.integers(0, 2**64 - 1),
)


@given(
    params=st.lists(ANYTHING, min_size=2, max_size=4),
    min_tokens=st.sampled_from([0, 2]),
    source=st.integers(0, 2**32),
)
@settings(max_examples=25, deadline=None)
def test_a_row_draws_the_same_alone_and_in_any_company(
    params: list[SamplingParams], min_tokens: int, source: int
) -> None:
    """Over steps, with every parameter in play: nothing of a row depends on who else is in the batch."""

    def build(params: SamplingParams) -> Row:
        return row(params, prompt=(1, 2, 3, 1, 2), stop_ids=frozenset({4}), min_tokens=min_tokens)

    logits = [mx.random.normal((len(params), VOCAB), key=mx.random.key(source + step)) * 2 for step in range(4)]

    def steps(places: list[int]) -> list[list[int]]:
        rows = [build(params[place]) for place in places]
        made = sampler(*rows)
        drawn = []
        for each in logits:
            drawn.append(made.draw(each[mx.array(places)]).tokens.tolist())
            for one in rows:
                one.num_started_tokens += 1
        return drawn

    together = steps(list(range(len(params))))
    for place in range(len(params)):
        assert [tokens[place] for tokens in together] == [tokens[0] for tokens in steps([place])]


@given(st.lists(st.lists(st.floats(-8, 8, width=32), min_size=VOCAB, max_size=VOCAB), min_size=2, max_size=4))
def test_typical_p_of_one_row_leaves_the_others_as_they_are(rows: list[list[float]]) -> None:
    for place in range(len(rows)):
        p = [0.3 if other == place else 1.0 for other in range(len(rows))]
        out = filters.filter_typical_p(mx.array(rows), column(*p))
        for other, logits in enumerate(rows):
            assert other == place or out[other].tolist() == mx.array(logits).tolist()
