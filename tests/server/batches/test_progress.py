"""Progress is counted from what this run does, and the time left from its rate."""

from __future__ import annotations

import pytest

from server.batches.progress import Progress, Tokens, duration


def test_what_was_done_before_counts_as_done_and_not_into_the_rate() -> None:
    progress = Progress(110, num_done=10)
    progress.begin(100.0)
    assert progress.left_s(100.0) is None
    for second in range(1, 11):
        progress.add(100.0 + second, is_success=second != 3)
    assert (progress.num_done, progress.num_failed, progress.num_left) == (20, 1, 90)
    assert progress.rate(110.0) == pytest.approx(1.0)
    assert progress.left_s(110.0) == pytest.approx(90.0)


def test_the_rate_is_that_of_the_last_minute() -> None:
    progress = Progress(10_000)
    progress.begin(0.0)
    for second in range(1, 200):
        for _ in range(10 if second < 100 else 2):
            progress.add(float(second), is_success=True)
    assert progress.rate(199.0) == pytest.approx(2.0, rel=0.05)
    assert len(progress._samples) < 200


def test_nothing_is_left_of_what_is_done() -> None:
    progress = Progress(0)
    assert progress.left_s(0.0) == 0.0


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"prompt_tokens": 5, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}}, (5, 4, 2)),
        ({"input_tokens": 5, "output_tokens": 2, "input_tokens_details": {"cached_tokens": 4}}, (5, 4, 2)),
        ({"input_tokens": 1, "output_tokens": 2, "cache_read_input_tokens": 4}, (5, 4, 2)),
        ({"prompt_tokens": 5, "total_tokens": 5}, (5, 0, 0)),
        ({"prompt_tokens": "5", "prompt_tokens_details": [1]}, (0, 0, 0)),
        (None, (0, 0, 0)),
        ([1], (0, 0, 0)),
    ],
)
def test_the_tokens_of_every_api_are_counted(usage: object, expected: tuple[int, int, int]) -> None:
    tokens = Tokens()
    tokens.add(usage)
    assert (tokens.prompt, tokens.cached, tokens.output) == expected


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
