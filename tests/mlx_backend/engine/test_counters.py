"""What the engine counts, and when it says to come again."""

from __future__ import annotations

import pytest

from mlx_backend.engine.counters import Counters


def test_each_end_counts_as_what_it_was() -> None:
    counters = Counters()
    for how in ("finished", "aborted", "aborted", "failed", "finished", "finished"):
        counters.ended(how, 1.0)
    stats = counters.snapshot(None, 4)
    assert (stats.num_finished, stats.num_aborted, stats.num_failed) == (3, 2, 1)
    assert (stats.num_waiting, stats.num_running) == (4, 0)


@pytest.mark.parametrize(
    ("ended_at", "now", "num_waiting", "expected"),
    [
        ([], 1000.0, 100, 5),  # nothing is known of the pace
        ([100.0, 101.0, 102.0], 1000.0, 100, 5),  # nor of late
        ([998.0 + place / 10 for place in range(20)], 1000.0, 100, 1),
        ([990.0, 995.0], 1000.0, 100, 50),
        ([990.0, 995.0], 1000.0, 10_000, 60),
        ([1.0, 2.0, 990.0, 995.0], 1000.0, 100, 50),  # an old burst is no pace
        ([999.9], 1000.0, 0, 1),
    ],
)
def test_when_to_come_again(ended_at: list[float], now: float, num_waiting: int, expected: int) -> None:
    counters = Counters()
    for at in ended_at:
        counters.ended("finished", at)
    assert counters.retry_after_s(num_waiting, now) == expected


def test_steps_that_come_late_are_stalls() -> None:
    counters = Counters()
    for now in (10.0, 10.2, 10.6, 10.7):
        counters.stepped(now, 0.25)
    assert counters.num_stalls == 1
    counters.stepped_at = None  # nothing ran meanwhile
    counters.stepped(99.0, 0.25)
    assert counters.num_stalls == 1
