"""However rank 0's calls follow each other, the other ranks start and collect the same steps, by fewer messages."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mlx_backend.core.step import StepPlan
from mlx_backend.ranks.pairing import Pairing

STEP, LEAVING = StepPlan(decodes=(1,)), StepPlan(ended=(1,))


class Rank:
    """What a runner has in flight: it may not collect what was not started."""

    def __init__(self) -> None:
        self.num_started = self.num_in_flight = 0

    def start(self) -> None:
        self.num_started += 1
        self.num_in_flight += 1

    def collect(self) -> None:
        assert self.num_in_flight > 0, "there is no step to collect"
        self.num_in_flight -= 1


@given(st.lists(st.sampled_from(["step", "collect", "leaving", "idle"]), max_size=60))
def test_the_others_collect_what_rank_0_collects(calls: list[str]) -> None:
    pairing, own, other = Pairing(), Rank(), Rank()
    for call in calls:
        if call == "step":
            own.start()
            other.start()
            if pairing.start(STEP):
                other.collect()
        elif call == "leaving":
            assert not pairing.start(LEAVING), "no step is started"
        elif call == "idle":
            pairing.idle()
            own.num_in_flight = other.num_in_flight = 0
        elif own.num_in_flight:
            own.collect()
            if pairing.collect():
                other.collect()
        assert other.num_started == own.num_started
        assert min(1, own.num_in_flight) <= other.num_in_flight <= own.num_in_flight, "the newest stays in flight"


def test_a_step_takes_one_message_while_rows_decode_without_a_break() -> None:
    pairing = Pairing()
    assert not pairing.start(STEP) and pairing.collect(), "the first token is waited for"
    assert not pairing.start(STEP)
    for _ in range(5):
        assert pairing.start(STEP)
        assert not pairing.collect()
    assert pairing.collect(), "the last step"
