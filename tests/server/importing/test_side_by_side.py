"""Work on threads: in order, a few pieces at once, and what goes wrong ends it."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from server.importing.side_by_side import in_order


def test_results_come_in_order_and_pieces_as_they_are_needed() -> None:
    taken: list[int] = []
    late = threading.Event()

    def pieces() -> Iterator[int]:
        for place in range(50):
            taken.append(place)
            yield place

    def work(piece: int) -> int:
        if piece == 0:
            assert late.wait(60)
        elif piece == 2:
            late.set()
        return piece * piece

    results = in_order(work, pieces(), 3)
    assert next(results) == 0
    assert len(taken) == 4
    assert list(results) == [place * place for place in range(1, 50)]


def test_an_error_comes_at_its_place_and_ends_it() -> None:
    started: list[int] = []

    def work(piece: int) -> int:
        started.append(piece)
        if piece == 3:
            raise ValueError("bad")
        return piece

    found = []
    with pytest.raises(ValueError, match="bad"):
        for result in in_order(work, range(1000), 2):
            found.append(result)
    assert found == [0, 1, 2] and len(started) < 20
