"""A form is read whatever pieces it comes in, its file goes to the disk, and what is no form is refused."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.dialects.openai_batches import upload
from server.dialects.openai_batches.upload import Body, Form, clean_name, read_form
from server.disconnect import ClientGone
from server.errors import InvalidRequest
from server.security.refusals import RequestTimeout

TYPE = 'multipart/form-data; boundary="b"'


def part(name: str, content: bytes, more: str = "") -> bytes:
    return f'--b\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode() + content + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--b--\r\n"


def read(pieces: list[bytes], content_type: str = TYPE, *, ends: bool = True) -> tuple[Form, bytes]:
    messages = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    messages += [{"type": "http.request"} if ends else {"type": "http.disconnect"}]
    written: list[bytes] = []

    async def receive() -> Any:
        return messages.pop(0)

    return asyncio.run(read_form(receive, content_type, written.append, timeout_s=60.0)), b"".join(written)


@settings(max_examples=60)
@given(st.binary(max_size=200), st.lists(st.integers(0, 400), max_size=6), st.booleans())
def test_a_form_is_read_whatever_pieces_it_comes_in(content: bytes, cuts: list[int], is_file_first: bool) -> None:
    content = content.replace(b"\r\n--b", b"")
    parts = [part("purpose", b"batch"), part("file", content, '; filename="a.jsonl"')]
    whole = form(*(parts[::-1] if is_file_first else parts))
    places = [0, *sorted(min(cut, len(whole)) for cut in cuts), len(whole)]
    pieces = [whole[begin:end] for begin, end in pairwise(places)]
    assert read(pieces) == (Form({"purpose": "batch"}, "a.jsonl"), content)


def test_a_large_file_is_written_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "_PIECE_BYTES", 100)
    sizes: list[int] = []

    async def receive() -> Any:
        return messages.pop(0)

    whole = form(part("file", b"x" * 1000))
    messages = [{"type": "http.request", "body": whole[n : n + 50], "more_body": True} for n in range(0, 1100, 50)]
    messages.append({"type": "http.request"})
    asyncio.run(read_form(receive, TYPE, lambda content: sizes.append(len(content)), timeout_s=60.0))
    assert sum(sizes) == 1000
    assert max(sizes) < 200


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("in.jsonl", "in.jsonl"),
        ("../../etc/passwd", "passwd"),
        ("C:\\Users\\x\\in.jsonl", "in.jsonl"),
        ("a\0b\r\nX: y.jsonl", "abX: y.jsonl"),
        ("..", "upload"),
        ("", "upload"),
        ("/", "upload"),
        ("x" * 300, "x" * 255),
        ("übung.jsonl", "übung.jsonl"),
    ],
)
def test_a_name_is_a_name_and_no_path(name: str, expected: str) -> None:
    assert clean_name(name) == expected


@pytest.mark.parametrize(
    ("body", "content_type", "words"),
    [
        (b"{}", "application/json", "multipart/form-data"),
        (b"", "", "multipart/form-data"),
        (form(part("file", b"x")), "multipart/form-data", "multipart/form-data"),
        (b"hello", TYPE, "not valid multipart"),
        (form(part("file", b"x"))[:-8], TYPE, "ends before"),
        (b"", TYPE, "ends before"),
        (form(part("file", b"x"), part("file", b"y")), TYPE, "more than one file"),
        (form(part("purpose", b"x" * 20_000)), TYPE, "more than 16384 bytes"),
        (form(*(part(str(n), b"") for n in range(20))), TYPE, "more than 16 fields"),
        (b"--b\r\n" + b"X: y\r\n" * 50, TYPE, "not valid multipart"),
        (b"--b\r\nX: " + b"y" * 10_000, TYPE, "not valid multipart"),
        (form(part("file", b"x")), f"multipart/form-data; boundary={'b' * 1000}", "not valid multipart"),
    ],
)
def test_what_is_no_form_is_refused(body: bytes, content_type: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        read([body], content_type)


def test_a_client_that_leaves_has_uploaded_nothing() -> None:
    with pytest.raises(ClientGone):
        read([form(part("file", b"x"))[:20]], ends=False)


async def test_an_upload_that_stands_still_or_trickles_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "_LEAST_BYTES_PER_S", 1e9)

    async def trickle() -> Any:
        await asyncio.sleep(0.001)
        return {"type": "http.request", "body": b"--b\r\n"[:0], "more_body": True}

    with pytest.raises(RequestTimeout):
        await read_form(trickle, TYPE, lambda _: None, timeout_s=0.05)


async def test_what_is_refused_is_read_for_a_moment() -> None:
    messages = [{"type": "http.request", "more_body": True}, {"type": "http.request", "more_body": False}]

    async def receive() -> Any:
        return messages.pop(0)

    body = Body(receive)
    await body.drain(60.0)
    await body.drain(60.0)
    assert messages == []

    async def wait() -> Any:
        await asyncio.Event().wait()

    await Body(wait).drain(0.01)
