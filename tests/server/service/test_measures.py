"""What is counted of a job as it goes, and when it ends."""

from __future__ import annotations

import time

import pytest

from mlx_backend.api.errors import EngineDead
from server.service.measures import TOKENS, WAITED_S, Histogram, Measures
from server.service.record import JobRecord
from server.text.events import EndReason, Finished


def build_record(measures: Measures, *, waited_s: float = 0.0, num_choices: int = 1) -> JobRecord:
    started_at = time.perf_counter() - waited_s
    return JobRecord("cmpl-1", "m", 5, started_at, measures=measures, num_choices=num_choices)


def play(record: JobRecord, *, num_batches: int, reasons: tuple[EndReason, ...] = ("stop",)) -> None:
    """Batches of two tokens, then the end of every choice."""
    record.begin(0.3)
    for _ in range(num_batches):
        record.tick()
        record.num_output_tokens += 2
    record.finished = [Finished(index, reason, 2) for index, reason in enumerate(reasons)]


def test_a_bound_is_of_its_bucket() -> None:
    histogram = Histogram((1, 2, 4))
    for value in (0.5, 1, 1.5, 4, 5):
        histogram.observe(value)
    assert histogram.cumulative == [2, 3, 4, 5]
    assert histogram.sum == 12


@pytest.mark.parametrize("bounds", [WAITED_S, TOKENS])
def test_bounds_ascend(bounds: tuple[float, ...]) -> None:
    assert list(bounds) == sorted(set(bounds))


def test_a_finished_job() -> None:
    measures = Measures()
    record = build_record(measures, waited_s=30)
    play(record, num_batches=4)
    record.add_to_measures(True)
    assert measures.num_output_tokens == 8
    assert measures.num_ended == {"stop": 1}
    assert measures.queue_time_s.sum == 0.3
    assert 30 < measures.time_to_first_token_s.sum < measures.e2e_latency_s.sum
    assert measures.inter_token_latency_s.cumulative[-1] == 3
    assert measures.time_per_output_token_s.cumulative[-1] == 1
    assert (measures.prompt_tokens.sum, measures.output_tokens.sum) == (5, 8)


def test_output_is_counted_as_it_comes() -> None:
    measures = Measures()
    record = build_record(measures)
    play(record, num_batches=3)
    assert measures.num_output_tokens == 4  # the last batch is counted with what follows


def test_the_mean_per_token_is_not_mixed_over_choices() -> None:
    measures = Measures()
    record = build_record(measures, num_choices=2)
    play(record, num_batches=4, reasons=("stop", "length"))
    record.add_to_measures(True)
    assert measures.time_per_output_token_s.cumulative[-1] == 0
    assert measures.num_ended == {"length": 1}


def test_a_job_that_was_given_up() -> None:
    measures = Measures()
    record = build_record(measures)
    play(record, num_batches=2, reasons=())
    record.add_to_measures(False)
    assert measures.num_ended == {"aborted": 1}
    assert measures.num_output_tokens == 4
    assert measures.e2e_latency_s.cumulative[-1] == measures.time_per_output_token_s.cumulative[-1] == 0


def test_a_job_that_failed_before_its_first_token() -> None:
    measures = Measures()
    record = build_record(measures)
    record.error = EngineDead("gone")
    record.add_to_measures(False)
    assert measures.num_ended == {"error": 1}
    assert measures.time_to_first_token_s.cumulative[-1] == measures.queue_time_s.cumulative[-1] == 0


def test_a_job_of_a_prompt_alone() -> None:
    """No token comes: `echo` with `max_tokens` 0."""
    measures = Measures()
    record = build_record(measures, waited_s=2)
    record.begin(0.1)
    record.finished = [Finished(0, "length", 0)]
    record.add_to_measures(True)
    assert measures.num_ended == {"length": 1}
    assert measures.time_to_first_token_s.cumulative[-1] == 0
    assert measures.e2e_latency_s.sum > 2
