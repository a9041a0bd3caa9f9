"""Busy servers are waited for, faults are tried again, and everything else is an answer."""

from __future__ import annotations

import pytest

from server.batches.answers import Answer
from server.batches.pacing import MAX_ATTEMPTS, Backoff, Decision, decide


@pytest.mark.parametrize("status", [200, 201, 400, 404, 413, 422, 501])
def test_an_answer_is_written(status: int) -> None:
    assert decide(status, MAX_ATTEMPTS) is Decision.WRITE


@pytest.mark.parametrize("status", [408, 429, 502, 503, 504, 529])
def test_a_busy_server_is_waited_for_however_often_it_says_so(status: int) -> None:
    assert decide(status, 1_000) is Decision.WAIT


def test_a_fault_is_written_after_some_attempts() -> None:
    found = [decide(500, attempt) for attempt in range(1, MAX_ATTEMPTS + 1)]
    assert found == [Decision.AGAIN] * (MAX_ATTEMPTS - 1) + [Decision.WRITE]


@pytest.mark.parametrize("status", [401, 403, 301, 101])
def test_a_key_that_is_refused_or_a_server_that_is_elsewhere_ends_the_run(status: int) -> None:
    assert decide(status, 1) is Decision.STOP


def test_waits_become_longer_and_have_a_limit_and_short_again() -> None:
    backoff = Backoff()
    waits = [backoff.wait_s(None) for _ in range(40)]
    assert waits == sorted(waits)
    assert waits[0] < 1.0 < waits[-1] <= 60.0
    backoff.reset()
    assert backoff.wait_s(None) == waits[0]


@pytest.mark.parametrize(("asked", "waited"), [(7.0, 7.0), (0.0, 0.05), (-3.0, 0.05), (1e9, 600.0)])
def test_what_the_server_asks_for_is_done_within_reason(asked: float, waited: float) -> None:
    assert Backoff().wait_s(Answer(429, b"", retry_after_s=asked)) == waited
