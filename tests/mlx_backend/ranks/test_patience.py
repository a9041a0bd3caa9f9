"""When a rank that has not closed its connection is lost."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mlx_backend.ranks.patience import BEAT_S, Patience

SECONDS = st.floats(0, 1000)
PATIENCE = Patience(silence_s=300, busy_silence_s=20, stall_s=180)


@given(SECONDS, st.booleans())
def test_who_is_heard_and_gets_on_is_not_lost(stalled_s: float, is_busy: bool) -> None:
    assert PATIENCE.loss(silent_s=5 * BEAT_S, stalled_s=min(stalled_s, 180), is_busy=is_busy) is None


@given(SECONDS, SECONDS)
def test_an_idle_group_outlives_a_short_silence_and_no_long_one(silent_s: float, stalled_s: float) -> None:
    lost = PATIENCE.loss(silent_s=silent_s, stalled_s=stalled_s, is_busy=False)
    assert (lost is not None) == (silent_s > 300)


@given(SECONDS, SECONDS)
def test_a_group_that_works_waits_for_neither_silence_nor_a_stall(silent_s: float, stalled_s: float) -> None:
    lost = PATIENCE.loss(silent_s=silent_s, stalled_s=stalled_s, is_busy=True)
    assert (lost is not None) == (silent_s > 20 or stalled_s > 180)
    if lost is not None:
        assert ("heard" in lost) == (silent_s > 20)
