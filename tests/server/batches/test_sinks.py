"""Failures have a file of their own where there is one; what was answered is taken over from both."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.batches.answers import Answer, AnswerFile, AnswersError, write_answer
from server.batches.sinks import AnswerSink, Recovered
from tests.server.batches.made import jsonl, read, request


def open_sink(folder: Path, *, is_split: bool) -> AnswerSink:
    return AnswerSink(AnswerFile(folder / "out"), AnswerFile(folder / "errors") if is_split else None)


@pytest.mark.parametrize("is_split", [False, True])
def test_answers_are_found_again(tmp_path: Path, is_split: bool) -> None:
    lines = read(jsonl(request("a"), request("b"), request("c")))
    sink = open_sink(tmp_path, is_split=is_split)
    for line, status in zip(lines[:2], (200, 400), strict=True):
        sink.put(line, write_answer(line, Answer(status, b"{}")))  # type: ignore[arg-type]
    sink.sync()
    sink.close()
    assert (tmp_path / "errors").exists() == is_split
    again = open_sink(tmp_path, is_split=is_split)
    assert again.recover() == Recovered(2, 1)
    assert [again.has(line) for line in lines] == [True, True, False]
    assert again.num_bytes == sum(path.stat().st_size for path in tmp_path.iterdir())
    again.close()


def test_a_line_is_not_answered_in_both_files(tmp_path: Path) -> None:
    (line,) = read(jsonl(request("a")))
    text = write_answer(line, Answer(200, b"{}")).text  # type: ignore[arg-type]
    (tmp_path / "out").write_bytes(text)
    (tmp_path / "errors").write_bytes(text)
    sink = open_sink(tmp_path, is_split=True)
    with pytest.raises(AnswersError, match="answered twice"):
        sink.recover()
    sink.close()
