"""The output is its own journal: cut off at any byte, it goes on, and nothing is lost or doubled."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.batches.answers import (
    Answer,
    Answered,
    AnswerFile,
    AnswersError,
    DiskFull,
    Found,
    write_answer,
    write_broken,
    write_error,
)
from server.batches.lines import BrokenLine, RequestLine
from tests.server.batches.made import jsonl, read, request


def line(number: int = 1, custom_id: str = "a") -> RequestLine:
    return RequestLine(number, f"{number:012x}", custom_id, "/v1/completions", b"{}", "")


def written(number: int, status: int = 200) -> bytes:
    return write_answer(line(number), Answer(status, b'{"text": "yes"}', "r")).text


def recovered(path: Path) -> list[Found]:
    file = AnswerFile(path)
    try:
        return list(file.recover())
    finally:
        file.close()


def test_an_answer_has_openais_shape() -> None:
    answer = write_answer(line(7), Answer(200, b'{"usage": {"prompt_tokens": 1}}', "req"))
    assert json.loads(answer.text) == {
        "id": "batch_req_000000000007_7",
        "custom_id": "a",
        "response": {"status_code": 200, "request_id": "req", "body": {"usage": {"prompt_tokens": 1}}},
        "error": None,
    }
    assert (answer.is_success, answer.usage) == (True, {"prompt_tokens": 1})
    assert not write_answer(line(), Answer(400, b'{"error": {}}')).is_success


def test_a_broken_line_has_its_number() -> None:
    (broken,) = read(jsonl(b"{"))
    assert isinstance(broken, BrokenLine)
    found = json.loads(write_broken(broken).text)
    assert (found["custom_id"], found["response"]) == (None, None)
    assert found["error"]["line"] == 1
    assert found["error"]["code"] == "invalid_json"


@pytest.mark.parametrize("body", [b"<html>", b"", b"[" * 100_000, b"\xff"])
def test_an_answer_that_is_no_json_is_an_error(body: bytes) -> None:
    answer = write_answer(line(), Answer(200, body))
    assert not answer.is_success
    assert json.loads(answer.text)["error"]["code"] == "invalid_answer"


@settings(max_examples=60)
@given(st.data())
def test_cut_off_at_any_byte_it_has_the_lines_that_were_whole(tmp_path_factory: pytest.TempPathFactory, data) -> None:
    custom_id = data.draw(st.text(max_size=30), "custom id")
    statuses = data.draw(st.lists(st.sampled_from([200, 400, None]), max_size=5), "statuses")
    texts = []
    for number, status in enumerate(statuses, 1):
        each = line(number, custom_id)
        answer = write_error(each, "x", custom_id) if status is None else write_answer(each, Answer(status, b'"\\n}"'))
        texts.append(answer.text)
    content = b"".join(texts)
    cut = data.draw(st.integers(0, len(content)), "cut")
    path = tmp_path_factory.mktemp("cut") / "out"
    zeros = data.draw(st.sampled_from([0, 7, 9000]), "zeros")  # what a power cut leaves of a file that had grown
    num_whole = sum(len(b"".join(texts[: n + 1])) <= cut for n in range(len(texts)))
    path.write_bytes(content[:cut] + (b"\0" * zeros if num_whole else b""))
    found = recovered(path)
    assert [each.number for each in found] == list(range(1, num_whole + 1))
    assert [each.is_success for each in found] == [status == 200 for status in statuses[:num_whole]]
    assert path.read_bytes() == b"".join(texts[:num_whole])


@pytest.mark.parametrize(
    "content",
    [b"hello", b"hello\n", b"\0" * 10, b'{"id": 7}\n', b'{"id": "batch_req_1_1"}\n', jsonl(request("a")), b"\n"],
)
def test_a_file_of_anything_else_is_refused_and_stays_as_it_is(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "out"
    for before in (b"", written(1)):
        if before and content == b"\0" * 10:
            continue  # what a power cut leaves
        path.write_bytes(before + content)
        with pytest.raises(AnswersError, match="is not an answer of a batch"):
            recovered(path)
        assert path.read_bytes() == before + content


def test_a_long_answer_is_passed_over_in_pieces(tmp_path: Path) -> None:
    path = tmp_path / "out"
    long = write_answer(line(1, "\U0001f600" * 512), Answer(200, json.dumps("x" * 300_000).encode())).text
    path.write_bytes(long + written(2, 500))
    assert recovered(path) == [Found(1, f"{1:012x}", True), Found(2, f"{2:012x}", False)]


def test_two_processes_do_not_write_the_same_file(tmp_path: Path) -> None:
    file = AnswerFile(tmp_path / "out")
    with pytest.raises(AnswersError, match="another process"):
        AnswerFile(tmp_path / "out")
    file.close()
    AnswerFile(tmp_path / "out").close()


@pytest.mark.parametrize(("number", "kind"), [(errno.ENOSPC, DiskFull), (errno.EDQUOT, DiskFull), (errno.EIO, OSError)])
def test_a_full_disk_leaves_whole_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[Exception]
) -> None:
    path = tmp_path / "out"
    file = AnswerFile(path)
    file.append(written(1))
    write = os.write
    sizes = iter([10, 5])

    def write_some(descriptor: int, content: bytes) -> int:
        size = next(sizes, None)
        if size is None:
            raise OSError(number, os.strerror(number))
        return write(descriptor, content[:size])

    with monkeypatch.context() as patched, pytest.raises(kind):
        patched.setattr(os, "write", write_some)
        file.append(written(2))
    assert path.read_bytes() == written(1)
    file.append(written(2))  # there is room again
    file.sync()
    file.close()
    assert path.read_bytes() == written(1) + written(2)


def test_what_may_not_be_written_is_not(tmp_path: Path) -> None:
    def refuse(num_bytes: int) -> None:
        raise AnswersError(f"no room for {num_bytes}")

    file = AnswerFile(tmp_path / "out", check_room=refuse)
    with pytest.raises(AnswersError, match="no room for"):
        file.append(written(1))
    file.close()
    assert (tmp_path / "out").read_bytes() == b""


def test_an_input_that_has_changed_is_noticed() -> None:
    answered = Answered()
    answered.add(3, "00000000000a")
    assert answered.has(3, "00000000000a")
    assert not answered.has(2, "00000000000a")
    assert not answered.has(4, "00000000000a")
    with pytest.raises(AnswersError, match="the input has changed"):
        answered.has(3, "00000000000b")
    with pytest.raises(AnswersError, match="answered twice"):
        answered.add(3, "00000000000a")


def test_a_number_that_no_line_has_takes_no_memory(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(written(999_999_999))
    with pytest.raises(AnswersError, match="answers no line"):
        recovered(tmp_path / "out")
