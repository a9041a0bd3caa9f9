"""The order of a run."""

from __future__ import annotations

from bench.rounds import order_of
from bench.servers import OURS, PEER


def test_each_second_round_runs_backwards() -> None:
    assert [order_of([OURS, PEER], number) for number in (1, 2, 3)] == [[OURS, PEER], [PEER, OURS], [OURS, PEER]]
