"""Thresholds and candidates against sorted lists in exact arithmetic: equal to the token, ties and -inf included."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_backend.api.interface import SamplingParams
from mlx_backend.sampling import filters, random_draw, selection
from tests.sampling_rows import row

pytestmark = pytest.mark.mlx

NEVER = -math.inf
SHARES = [1e-9, 1e-4, 0.1, 0.3, 0.5, 0.9, 0.95, 0.999, 0.9999999, 1.0]
DTYPES = [mx.float32, mx.float16, mx.bfloat16]

values = st.one_of(
    st.floats(-40, 40, width=32),
    st.sampled_from([NEVER, -0.0, 0.0, 1.0, 1.0000001, 2.5, -3e4]),  # ties, neighbours and what has no mass
)


@st.composite
def batches(draw: st.DrawFn, most: int = 24) -> mx.array:
    """Logits [rows, vocab] of some precision; each row has a token that may be drawn."""
    vocab = draw(st.integers(1, most))
    rows = draw(st.lists(st.lists(values, min_size=vocab, max_size=vocab), min_size=1, max_size=4))
    for each in rows:
        if max(each) == NEVER:
            each[draw(st.integers(0, vocab - 1))] = 0.5
    return mx.array(rows, dtype=mx.float32).astype(draw(st.sampled_from(DTYPES))).astype(mx.float32)


def column(values: list[Any]) -> mx.array:
    return mx.array(values)[:, None]


def kept(filtered: mx.array) -> list[set[int]]:
    return [{i for i, value in enumerate(values) if value > NEVER} for values in filtered.tolist()]


def possible(logits: list[float]) -> set[int]:
    return {i for i, value in enumerate(logits) if value > NEVER}


def by_sorting(order: list[float], weights: list[int], share: float) -> set[int]:
    """The tokens of largest `order`, group of equals by group, until they weigh `share`, in whole numbers."""
    numerator = max(round(float(np.float32(share)) * 2**24), 1)
    result: set[int] = set()
    for value in sorted(set(order), reverse=True):
        if sum(weights[i] for i in result) * 2**24 >= sum(weights) * numerator:
            break
        result |= {i for i, each in enumerate(order) if each == value}
    return result


@given(logits=batches(), data=st.data())
@settings(max_examples=60, deadline=None)
def test_top_p_keeps_what_a_sorted_list_would(logits: mx.array, data: st.DataObject) -> None:
    shares = data.draw(st.lists(st.sampled_from(SHARES), min_size=len(logits), max_size=len(logits)))
    out = kept(filters.filter_top_p(logits, column(shares)))
    probabilities = mx.softmax(logits, axis=-1, precise=True)
    for place, share in enumerate(shares):
        p = probabilities[place].tolist()
        expected = by_sorting(p, [int(np.float32(value) * np.float32(2**31) + np.float32(0.5)) for value in p], share)
        here = possible(logits[place].tolist())
        assert out[place] == (here if share == 1 else expected & here)
        assert out[place]


@given(logits=batches(), data=st.data())
@settings(max_examples=50, deadline=None)
def test_top_k_keeps_ties_and_both_ways_agree(logits: mx.array, data: st.DataObject) -> None:
    vocab = logits.shape[-1]
    top_k = data.draw(st.lists(st.integers(1, vocab), min_size=len(logits), max_size=len(logits)))
    out = kept(filters.filter_top_k(logits, column(top_k)))
    most = data.draw(st.integers(max(top_k), vocab))
    assert kept(filters.filter_few(logits, column(top_k), None, most)) == out
    for place, k in enumerate(top_k):
        here = logits[place].tolist()
        assert out[place] == {i for i in possible(here) if here[i] >= sorted(here, reverse=True)[k - 1]}


@given(logits=batches(), data=st.data())
@settings(max_examples=50, deadline=None)
def test_of_few_tokens_top_p_keeps_what_a_sorted_list_would(logits: mx.array, data: st.DataObject) -> None:
    """Whatever the largest top_k of the batch; with ties of the last of top_k counted, too."""
    vocab = logits.shape[-1]
    top_k = data.draw(st.lists(st.integers(1, vocab), min_size=len(logits), max_size=len(logits)))
    shares = data.draw(st.lists(st.sampled_from(SHARES), min_size=len(logits), max_size=len(logits)))
    out = [kept(filters.filter_few(logits, column(top_k), column(shares), most)) for most in {max(top_k), vocab}]
    assert all(each == out[0] for each in out)
    for place, (k, share) in enumerate(zip(top_k, shares, strict=True)):
        here = logits[place].tolist()
        left = {i for i in possible(here) if here[i] >= sorted(here, reverse=True)[k - 1]}
        scaled = mx.exp(logits[place] - mx.max(logits[place])) * float(2**23) + 0.5
        weights = [weight if i in left else 0 for i, weight in enumerate(scaled.astype(mx.uint32).tolist())]
        assert out[0][place] == (left if share == 1 else by_sorting(here, weights, share) & left)


def test_ties_of_the_last_of_top_k_count_among_what_it_left() -> None:
    """Of 2.47 in all half is 1.24, more than the likeliest token's 1; without the ties it would be half of 1.37."""
    logits = mx.array([[2.0, 1.0, 1.0, 1.0, 1.0]])
    assert kept(filters.filter_few(logits, column([2]), column([0.5]), 2)) == [{0, 1, 2, 3, 4}]


@given(
    keys=st.lists(st.integers(0, 2**32 - 1) | st.sampled_from([0, 7, 2**32 - 1]), min_size=1, max_size=20),
    data=st.data(),
)
@settings(max_examples=50, deadline=None)
def test_the_bits_of_a_pass_change_nothing(keys: list[int], data: st.DataObject) -> None:
    weights = data.draw(st.lists(st.integers(0, 2**26), min_size=len(keys), max_size=len(keys)))
    weights[0] += 1
    target = data.draw(st.integers(1, sum(weights)))
    expected = max(key for key in keys if sum(w for k, w in zip(keys, weights, strict=True) if k >= key) >= target)
    for bits in range(1, 5):
        found = selection.find_threshold(
            mx.array([keys], dtype=mx.uint32),
            mx.array([weights], dtype=mx.uint32),
            mx.array([[target]]),
            bits_per_pass=bits,
        )
        assert found.tolist() == [[expected]]


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=2, max_size=20))
def test_keys_are_in_the_order_of_the_values(values: list[float]) -> None:
    keys = selection.order_keys(mx.array(values)).tolist()
    for i, one in enumerate(np.array(values, dtype=np.float32)):
        for j, other in enumerate(np.array(values, dtype=np.float32)):
            assert (keys[i] < keys[j]) == (one < other)


@given(total=st.integers(0, 2**42), share=st.floats(2**-30, 1, width=32))
def test_a_share_is_exact(total: int, share: float) -> None:
    numerator = max(round(share * 2**24), 1)
    found = selection.share_of(mx.array([[total]], dtype=mx.uint64), mx.array([[share]], dtype=mx.float32))
    assert found.tolist() == [[-(-total * numerator // 2**24)]]


@given(
    rows=st.integers(1, 3).flatmap(
        lambda num: st.integers(1, 60).flatmap(
            lambda vocab: st.lists(st.lists(values, min_size=vocab, max_size=vocab), min_size=num, max_size=num)
        )
    ),
    num=st.integers(1, 12),
    group=st.sampled_from([2, 3, 4]),
)
@settings(max_examples=60, deadline=None)
def test_the_largest_are_candidates_at_their_places(rows: list[list[float]], num: int, group: int) -> None:
    array = mx.array(rows, dtype=mx.float32)
    few, places = selection.candidates(array, num, group)
    for here, found, at in zip(array.tolist(), few.tolist(), places.tolist(), strict=True):
        assert len(set(at)) == len(at)
        assert [here[i] for i in at] == found
        assert sorted(found)[-num:] == sorted(here)[-num:]


def test_candidates_of_a_large_vocabulary_are_a_part_of_it() -> None:
    few, _ = selection.candidates(mx.zeros((2, 50_257)), 20)
    assert 20 * selection.GROUP <= few.shape[-1] < 21 * selection.GROUP


def test_a_large_vocabulary_against_float64() -> None:
    """Tokens in the nucleus: within what has no mass, 2**-32 a token, and what float32 makes of a probability."""
    logits = mx.random.normal((3, 50_000), key=mx.random.key(5)) * mx.array([[0.1], [1.0], [4.0]])
    for share in (0.3, 0.9, 0.99):
        out = kept(filters.filter_top_p(logits, column([share] * 3)))
        for place, found in enumerate(out):
            weights = np.exp(np.array(logits[place]).astype(np.float64))
            sums = np.cumsum(np.sort(weights)[::-1]) / weights.sum()
            least, most = (int(np.searchsorted(sums, float(np.float32(share)) + by)) + 1 for by in (-2e-5, 2e-5))
            assert least <= len(found) <= most


@pytest.mark.parametrize(
    ("num_elements", "on_gpu", "bits"),
    [(128_256, False, 1), (32 * 128_256, False, 1), (128_256, True, 3), (8 * 128_256, True, 2)],
)
def test_bits_of_a_pass(num_elements: int, on_gpu: bool, bits: int) -> None:
    assert selection.choose_bits(num_elements, on_gpu=on_gpu) == bits


def test_blocks_of_rows_and_what_a_gpu_runs_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU some operations are compiled into one; here by a C++ compiler, as mlx-lm's models have it do."""
    logits = mx.random.normal((3, 3000), key=mx.random.key(3)) * 3
    shares, ks = column([0.9, 0.5, 0.99]), column([1000, 1, 2999])
    expected = [filters.filter_top_p(logits, shares), filters.filter_top_k(logits, ks)]
    assert kept(expected[1])[0] == set(np.argsort(-np.array(logits[0]))[:1000].tolist())
    monkeypatch.setattr(selection, "_CACHED_ELEMENTS", 1)
    apart = [filters.filter_top_p(logits, shares), filters.filter_top_k(logits, ks)]
    monkeypatch.setattr(selection, "_is_on_gpu", lambda: True)
    on_gpu = [filters.filter_top_p(logits, shares), filters.filter_top_k(logits, ks)]
    for each in (apart, on_gpu):
        assert all(mx.array_equal(found, right) for found, right in zip(each, expected, strict=True))


def test_what_no_row_asks_for_is_not_computed() -> None:
    def names(*params: SamplingParams, vocab: int = 128_256) -> list[str]:
        return [each.func.__name__ for each in random_draw._filters(params, vocab)]  # type: ignore[attr-defined]

    assert names(SamplingParams(temperature=1.0), SamplingParams(temperature=0, top_p=0.5, top_k=3)) == []
    assert names(SamplingParams(top_k=20, top_p=0.5)) == ["filter_few"]
    assert names(SamplingParams(top_p=0.5)) == ["filter_top_p"]
    assert names(SamplingParams(top_k=1000)) == ["filter_top_k"]
    assert names(SamplingParams(top_k=1000, top_p=0.5)) == ["filter_top_k", "filter_top_p"]
    assert names(SamplingParams(top_k=20), SamplingParams(top_p=0.5)) == ["filter_few", "filter_top_p"]


@given(order=st.permutations(range(5)), source=st.integers(0, 2**32))
@settings(max_examples=8, deadline=None)
def test_rows_of_a_larger_vocabulary_draw_the_same_in_any_company(order: list[int], source: int) -> None:
    """Where candidates are a part of the vocabulary and both ways of filtering are taken in one batch."""
    vocab = 5000
    choices = [(0, 0.8), (20, 0.9), (30, 1.0), (100, 0.7), (3, 0.5)]
    params = [SamplingParams(top_k=k, top_p=p, seed=i) for i, (k, p) in enumerate(choices)]
    logits = (mx.random.normal((5, vocab), key=mx.random.key(source)) * 3).astype(mx.bfloat16).astype(mx.float32)
    greedy = mx.zeros((5,), dtype=mx.uint32)

    def draw(places: list[int]) -> list[int]:
        made = random_draw.RandomDraw([row(params[place]) for place in places], vocab)
        tokens: list[int] = made.draw(logits[mx.array(places)], greedy[: len(places)]).tolist()
        return tokens

    together = draw(order)
    for place, token in zip(order, together, strict=True):
        assert draw([place]) == [token]
