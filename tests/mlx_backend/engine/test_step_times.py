"""How long steps take by rows: measured, between what was measured, and beyond."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_backend.engine.step_times import StepTimes


def measured(**seconds: float) -> StepTimes:
    times = StepTimes()
    for rows, each in seconds.items():
        times.observe(int(rows.removeprefix("of")), each)
    return times


def test_between_measurements_lies_a_line_and_beyond_them_rows_are_dear() -> None:
    times = measured(of2=0.010, of6=0.030)
    assert times.estimate(1) is None
    assert times.estimate(2) == 0.010
    assert times.estimate(4) == pytest.approx(0.020)
    assert times.estimate(12) == pytest.approx(0.060)


def test_a_new_measurement_moves_the_estimate() -> None:
    times = measured(of1=0.010)
    for _ in range(40):
        times.observe(1, 0.020)
    found = times.estimate(1)
    assert found is not None and 0.019 < found <= 0.020


def test_rows_are_added_as_far_as_a_step_stays_short() -> None:
    times = measured(of1=0.010, of11=0.020)
    assert times.most_rows(1, 8, 1.1) == 1
    assert times.most_rows(1, 8, 1.35) == 3
    assert times.most_rows(1, 2, 1.35) == 2
    assert StepTimes().most_rows(1, 8, 1.1) == 0


@given(
    st.dictionaries(st.integers(1, 40), st.floats(1e-4, 1.0), min_size=1),
    st.integers(1, 40),
    st.integers(0, 40),
    st.floats(1.0, 2.0),
)
def test_a_step_with_added_rows_costs_no_more_than_said(
    seconds: dict[int, float], rows: int, most: int, factor: float
) -> None:
    times = StepTimes()
    for number, each in seconds.items():
        times.observe(number, each)
    added = times.most_rows(rows, most, factor)
    assert 0 <= added <= most
    alone, together = times.estimate(rows), times.estimate(rows + added)
    assert alone is None or (together is not None and (not added or together <= factor * alone))
