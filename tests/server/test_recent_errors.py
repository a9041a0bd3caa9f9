"""The last errors: newest first, the same again as one, bounded, and never a client's words."""

from __future__ import annotations

from mlx_backend.api.errors import SequenceFailed
from server.errors import InvalidRequest, to_api_error
from server.recent_errors import KEPT, RecentErrors


def test_the_same_again_is_one_and_the_newest() -> None:
    times = iter((1.0, 2.0, 3.0))
    errors = RecentErrors(lambda: next(times))
    errors.add(InvalidRequest("it says 'secret'", param="a"), "first")
    errors.add(to_api_error(SequenceFailed("lost")), "second")
    errors.add(InvalidRequest("it says 'secret', too", param="a"), "third")
    errors.add(None, "fourth")
    first, second = errors.list()
    assert (first.at, first.request_id, first.status, first.count) == (3.0, "third", 400, 2)
    assert (first.code, first.message) == ("invalid_request_error", "at 'a'")
    assert (second.status, second.code, second.message, second.count) == (500, "sequence_failed", "lost", 1)


def test_they_are_bounded() -> None:
    errors = RecentErrors()
    for number in range(3 * KEPT):
        errors.add(InvalidRequest("wrong", param=f"a{number}"), "")
    assert [error.message for error in errors.list()][:2] == [f"at 'a{3 * KEPT - 1}'", f"at 'a{3 * KEPT - 2}'"]
    assert len(errors.list()) == KEPT
