"""Every line of an input is a request or a broken line with its number, in bounded memory."""

from __future__ import annotations

import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.batches.lines import (
    ENDPOINTS,
    BrokenLine,
    LineLimits,
    RequestLine,
    TooManyLines,
    count_lines,
    read_lines,
)
from tests.server.batches.made import jsonl, read, request


def test_a_line_is_read() -> None:
    (line,) = read(jsonl(request("a", "/v1/chat/completions", messages=[{"role": "user", "content": "hé"}])))
    assert isinstance(line, RequestLine)
    assert (line.number, line.custom_id, line.url) == (1, "a", "/v1/chat/completions")
    assert json.loads(line.body) == {"messages": [{"role": "user", "content": "hé"}]}


def test_a_response_is_not_stored_unless_the_line_says_so() -> None:
    kept, not_kept = read(
        jsonl(request("a", "/v1/responses", input="x", store=True), request("b", "/v1/responses", input="x"))
    )
    assert json.loads(kept.body)["store"] is True
    assert json.loads(not_kept.body)["store"] is False


@pytest.mark.parametrize(
    ("broken", "code"),
    [
        (b"{", "invalid_json"),
        (b"[1]", "invalid_json"),
        (b'"\xff"', "invalid_json"),
        (b"[" * 5000, "invalid_json"),
        (b'{"custom_id": "x", "url": "/v1/completions", "body": {"temperature": NaN}}', "invalid_json"),
        (b'{"custom_id": "x", "url": "/v1/completions", "body": {"temperature": 1e999}}', "invalid_json"),
        (b'{"custom_id": "x", "url": "/v1/completions", "body": {"seed": ' + b"9" * 5000 + b"}}", "invalid_json"),
        ({"url": "/v1/completions", "body": {}}, "missing_custom_id"),
        (request(7), "invalid_custom_id"),
        (request(""), "invalid_custom_id"),
        (request("x" * 513), "invalid_custom_id"),
        (request("first"), "duplicate_custom_id"),
        ({**request("x"), "method": "GET"}, "invalid_method"),
        (request("x", "/v1/files"), "invalid_url"),
        (request("x", "http://example.com/v1/completions"), "invalid_url"),
        (request("x", ["/v1/completions"]), "invalid_url"),
        (request("x", "/v1/embeddings", input="x"), "mismatched_endpoint"),
        ({**request("x"), "body": []}, "invalid_body"),
        ({"custom_id": "x", "url": "/v1/completions"}, "invalid_body"),
        (request("x", prompt="x", stream=True), "unsupported_parameter"),
        (request("x", prompt="x" * 9000), "line_too_long"),
    ],
)
def test_a_broken_line_is_one_with_its_number_and_the_others_are_read(broken: object, code: str) -> None:
    content = jsonl(request("first"), b"", broken, request("last"))
    first, found, last = read(content, LineLimits(max_line_bytes=8000), endpoint="/v1/completions")
    assert isinstance(first, RequestLine)
    assert isinstance(last, RequestLine)
    assert isinstance(found, BrokenLine)
    assert (found.number, found.code, last.number) == (3, code, 4)
    assert found.message.startswith("Line 3 ")


def test_what_is_broken_keeps_its_id_where_it_has_one() -> None:
    found = read(jsonl(request("x", "/nowhere"), request("x")))
    assert [line.custom_id for line in found] == ["x", "x"]
    assert [line.code for line in found if isinstance(line, BrokenLine)] == ["invalid_url", "duplicate_custom_id"]


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n", b"\n\n \n"])
def test_a_mark_does_not_depend_on_how_a_line_ends(end: bytes) -> None:
    line = json.dumps(request("a")).encode()
    assert read(line + end)[0].mark == read(b"\xef\xbb\xbf" + line)[0].mark


def test_a_line_of_just_the_bytes_that_are_allowed_is_read_whatever_ends_it() -> None:
    line = json.dumps(request("a")).encode()
    for end in (b"", b"\n", b"\r\n"):
        for more, kind in ((0, RequestLine), (-1, BrokenLine)):
            (found,) = read(line + end, LineLimits(max_line_bytes=len(line) + more))
            assert isinstance(found, kind)
    (found,) = read(b"\xef\xbb\xbf" + line + b"x" * 100, LineLimits(max_line_bytes=len(line)))
    assert isinstance(found, BrokenLine)


def test_more_lines_than_are_allowed_are_refused() -> None:
    with pytest.raises(TooManyLines, match="more than 2 lines"):
        read(jsonl(request("a"), request("b"), request("c")), LineLimits(max_lines=2))


class _Pieces(io.RawIOBase):
    """A file that is never there as a whole: `size` bytes of `x`, and the most that was asked for at once."""

    def __init__(self, size: int) -> None:
        self.left, self.largest = size, 0

    def readline(self, limit: int | None = -1, /) -> bytes:
        assert limit is not None
        self.largest = max(self.largest, limit)
        piece = b"x" * min(self.left, limit)
        self.left -= len(piece)
        return piece


def test_a_line_without_an_end_is_not_read_into_memory() -> None:
    stream = _Pieces(100 << 20)
    (found,) = read_lines(stream, LineLimits(max_line_bytes=100_000))  # type: ignore[arg-type]
    assert isinstance(found, BrokenLine)
    assert found.code == "line_too_long"
    assert stream.left == 0
    assert stream.largest <= 100_002


@settings(max_examples=60)
@given(st.lists(st.binary(max_size=40) | st.just(json.dumps(request("a")).encode()), max_size=8))
def test_every_line_that_is_not_blank_is_one_line(parts: list[bytes]) -> None:
    content = b"\n".join(parts)
    raw = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    numbers = [number for number, line in enumerate(raw, 1) if line.strip()]
    found = read(content)
    assert [line.number for line in found] == numbers
    assert count_lines(io.BytesIO(content)) == len(numbers)
    assert sum(isinstance(line, RequestLine) for line in found) <= 1


def test_every_endpoint_is_taken() -> None:
    content = jsonl(*(request(url, url, model="m") for url in ENDPOINTS))
    assert [line.url for line in read(content) if isinstance(line, RequestLine)] == list(ENDPOINTS)
