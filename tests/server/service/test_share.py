"""How memory is divided between models."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mlx_backend.api.interface import Footprint
from server.service.share import choose_share


def footprint(wanted: int) -> Footprint:
    return Footprint(weights_bytes=wanted // 2, least_bytes=wanted // 2, wanted_bytes=wanted, limit_bytes=None)


def test_what_is_left_is_divided_with_those_that_could_come() -> None:
    assert choose_share(100, footprint(80), []) == 100
    assert choose_share(100, footprint(80), [footprint(80)]) == 100  # it could never be beside this one
    assert choose_share(100, footprint(20), [footprint(30)]) == 20 + 25
    assert choose_share(100, footprint(20), [footprint(90), footprint(20), footprint(30)]) == 20 + 10
    assert choose_share(50, footprint(80), []) == 50


@given(st.integers(0, 1000), st.integers(1, 1000), st.lists(st.integers(1, 1000), max_size=6))
def test_never_more_than_is_free_and_the_smallest_other_still_fits_where_it_could(
    free: int, wanted: int, others: list[int]
) -> None:
    share = choose_share(free, footprint(wanted), map(footprint, others))
    assert min(free, wanted) <= share <= free
    if others and wanted + min(others) <= free:
        assert free - share >= min(others)
