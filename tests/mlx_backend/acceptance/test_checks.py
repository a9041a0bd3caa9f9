"""Checks of the acceptance kit: bounds, comparisons, and the options that a step is sent."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_backend.acceptance.checks import (
    Check,
    Options,
    Outcome,
    check_peak,
    check_speed,
    describe_times,
    divergence,
)
from mlx_backend.planning.speed import Estimate

ids = st.lists(st.integers(0, 3), max_size=6)


@pytest.mark.parametrize(
    ("low", "high", "measured", "is_kept"),
    [(None, None, 5, True), (5, 5, 5, True), (6, None, 5, False), (None, 4, 5, False), (1, 9, 5, True)],
)
def test_bounds(low: float | None, high: float | None, measured: float, is_kept: bool) -> None:
    assert Check(name="x", measured=measured, low=low, high=high).is_kept is is_kept


def test_a_peak_above_the_model_of_memory_is_not_kept_and_one_far_below_neither() -> None:
    predicted = 10 * 10**9
    assert check_peak("x", predicted, predicted).is_kept
    assert not check_peak("x", predicted * 6 // 5, predicted).is_kept
    assert not check_peak("x", predicted // 3, predicted).is_kept
    assert check_peak("x", 12_000_000, 10_000_000).is_kept  # small buffers alone


def test_a_speed_is_compared_with_the_planners_range_where_there_is_one() -> None:
    assert check_speed("x", 5.0, None) == []
    (slow,) = check_speed("x", 5.0, Estimate(10.0, 8.0, 12.0))
    assert (slow.is_kept, slow.predicted) == (False, 10.0)
    (right,) = check_speed("x", 8.0, Estimate(10.0, 8.0, 12.0))
    assert right.is_kept


@given(ids, ids)
def test_the_first_difference(one: list[int], other: list[int]) -> None:
    place = divergence(one, other)
    if place is None:
        assert one == other
    else:
        assert one[:place] == other[:place]
        assert one[place : place + 1] != other[place : place + 1]


def test_times() -> None:
    assert describe_times([0.3, 0.1, 0.2]) == pytest.approx({"first_ms": 300, "median_ms": 200, "most_ms": 300})


def test_options_come_out_of_json_as_they_were() -> None:
    sent = {"model": "m", "contexts": [1, 2], "soak_s": 3.0, "wired": "never"}
    options = Options.read(json.loads(json.dumps(sent)))
    assert (options.contexts, options.soak_s, options.wired) == ((1, 2), 3.0, "never")
    with pytest.raises(TypeError):
        Options.read({"model": "m", "no_such": 1})


def test_an_outcome_is_json_with_what_was_kept() -> None:
    written = Outcome(figures={"a": 1}, checks=[Check(name="x", measured=2, high=1, unit="s")]).to_json()
    assert json.loads(json.dumps(written)) == written
    assert written["checks"][0]["is_kept"] is False
    assert written["skipped"] is None
