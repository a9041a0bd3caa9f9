"""The line in the log of one job."""

from __future__ import annotations

import logging
import time

import pytest

from mlx_backend.api.errors import EngineDead
from server.security.rate import Account
from server.service.record import JobRecord
from server.text.events import Finished, Usage


def build_record() -> JobRecord:
    return JobRecord("cmpl-1", "m", num_prompt_tokens=5, started_at=time.perf_counter())


def test_usage_sums_over_the_choices() -> None:
    record = build_record()
    record.finished = [Finished(1, "stop", 3), Finished(0, "length", 4)]
    assert record.usage(2) == Usage(5, 2, 7)


def test_a_finished_job(caplog: pytest.LogCaptureFixture) -> None:
    record = build_record()
    for _ in range(3):
        record.tick()
        record.num_output_tokens += 2
    record.finished = [Finished(1, "length", 3), Finished(0, "stop", 3)]
    with caplog.at_level(logging.INFO, "pippin.request"):
        record.write(2, True)
    assert "cmpl-1 model=m prompt=5 cached=2 output=6 ttft=0." in caplog.text
    assert "finish=stop,length" in caplog.text
    assert "tok/s=-" not in caplog.text


def test_an_aborted_job_that_had_no_token(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "pippin.request"):
        build_record().write(0, False)
    assert "output=0 ttft=- tok/s=- finish=aborted" in caplog.text


def test_a_failed_job_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    record = build_record()
    record.error = ValueError("broken")
    record.write(0, False)
    assert caplog.records[0].levelno == logging.WARNING
    assert "finish=failed (ValueError)" in caplog.text  # whose words may be a prompt's


def test_an_engine_error_is_told_with_its_message(caplog: pytest.LogCaptureFixture) -> None:
    record = build_record()
    record.error = EngineDead("the device is gone")
    record.write(0, False)
    assert "finish=failed (EngineDead: the device is gone)" in caplog.text


def test_the_fields_of_a_line_stand_apart(caplog: pytest.LogCaptureFixture) -> None:
    record = build_record()
    record.finished = [Finished(0, "stop", 3)]
    record.num_output_tokens = 3
    with caplog.at_level(logging.INFO, "pippin.request"):
        record.write(2, True)
    (line,) = caplog.records
    assert line.fields == {  # type: ignore[attr-defined]
        "request_id": "cmpl-1",
        "id": "cmpl-1",
        "model": "m",
        "prompt_tokens": 5,
        "truncated_tokens": 0,
        "cached_tokens": 2,
        "output_tokens": 3,
        "drafted_tokens": 0,
        "accepted_tokens": 0,
        "ttft_s": None,
        "tok_s": None,
        "finish": "stop",
    }


def test_what_is_written_is_charged_as_it_comes_and_the_rest_given_back() -> None:
    account = Account(None, 1000)
    record = build_record()
    record.rate_grant = account.reserve(5 + 10)

    def left() -> int:
        return int(account.headers()["x-ratelimit-remaining-tokens"])

    assert left() == 985
    record.num_output_tokens = 10
    record.tick()
    assert left() == 985
    record.num_output_tokens = 200  # of unknown length, and longer than was thought
    record.tick()
    assert left() == 795
    record = build_record()
    record.rate_grant = account.reserve(5 + 100)
    record.num_output_tokens = 1
    record.add_to_measures(False)
    assert left() >= 789
