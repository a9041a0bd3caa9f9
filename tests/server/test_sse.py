"""Streamed answers over a source of strings: what goes out, how errors look, and that the source is closed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from sse_starlette.sse import AppStatus, SendTimeoutError
from starlette.types import Message

from mlx_backend.api.errors import SequenceFailed
from mlx_backend.api.interface import PrefillProgress
from server import sse
from server.dialects.openai_errors import encode_error as encode_body
from server.errors import APIError
from server.sse import Start, StreamingAnswer, keep_alive

STARTS = (None, Start(lambda: b"begun", 60.0))
"""None, and one that is never due."""
SCOPE = {"type": "http", "method": "POST", "path": "/", "headers": []}


class Source:
    def __init__(self, *batches: list[str] | Exception, hangs: bool = False) -> None:
        self._batches = batches
        self._hangs = hangs
        self.num_closed = 0
        self.progress = PrefillProgress(num_computed_tokens=43, num_prompt_tokens=100)

    async def __aiter__(self) -> AsyncIterator[Sequence[Any]]:
        for batch in self._batches:
            if isinstance(batch, Exception):
                raise batch
            yield batch
        if self._hangs:
            await asyncio.Event().wait()

    async def aclose(self) -> None:
        self.num_closed += 1


async def stay() -> Message:
    await asyncio.Event().wait()
    raise AssertionError


async def encode(events: Sequence[str]) -> bytes:
    return "".join(events).encode()


def encode_error(error: APIError) -> bytes:
    return f"data: {json.dumps(encode_body(error))}\n\n".encode()


def build_answer(
    source: Source, *, keep_alive_s: float = 60.0, send_timeout_s: float = 60.0, start: Start | None = None
) -> StreamingAnswer:
    return StreamingAnswer(
        source,
        encode=encode,
        encode_error=encode_error,
        keep_alive_s=keep_alive_s,
        send_timeout_s=send_timeout_s,
        headers={"X-Mine": "yes"},
        start=start,
    )


async def run(answer: StreamingAnswer) -> list[Message]:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    await answer(SCOPE, stay, send)
    return sent


async def test_one_write_per_batch_and_none_for_an_empty_one() -> None:
    source = Source(["a", "b"], [""], ["c"])
    start, *bodies = await run(build_answer(source))
    headers = dict(start["headers"])
    assert headers[b"content-type"].startswith(b"text/event-stream")
    assert headers[b"x-mine"] == b"yes"
    assert [message["body"] for message in bodies] == [b"ab", b"c", b""]
    assert source.num_closed == 1


@pytest.mark.parametrize(
    ("error", "code"), [(SequenceFailed("it failed"), "sequence_failed"), (KeyError("secret"), "internal_error")]
)
async def test_an_error_is_one_event_and_the_end(error: Exception, code: str, caplog: pytest.LogCaptureFixture) -> None:
    source = Source(["a"], error)
    _, *bodies = await run(build_answer(source))
    assert len(bodies) == 3
    event = json.loads(bodies[1]["body"].removeprefix(b"data: "))
    assert event["error"]["code"] == code
    assert "secret" not in str(event)
    assert ("unexpected error in a stream" in caplog.text) == (code == "internal_error")
    assert bodies[2] == {"type": "http.response.body", "body": b"", "more_body": False}
    assert source.num_closed == 1


@pytest.mark.parametrize("rest", [[["a"], ["b"]], [["a"], SequenceFailed("it failed")], []])
async def test_a_stream_that_starts_late_has_the_same_events(rest: list[list[str] | Exception]) -> None:
    bodies = [[part["body"] for part in (await run(build_answer(Source(*rest), start=start)))[1:]] for start in STARTS]
    assert bodies[0] == bodies[1]


async def test_a_start_is_written_though_nothing_comes() -> None:
    source = Source(hangs=True)
    sent: list[Message] = []
    is_begun = asyncio.Event()

    async def send(message: Message) -> None:
        sent.append(message)
        if len(sent) == 2:
            is_begun.set()

    async def leave() -> Message:
        await is_begun.wait()
        return {"type": "http.disconnect"}

    await build_answer(source, start=Start(lambda: b"begun"))(SCOPE, leave, send)
    assert sent[1]["body"] == b"begun"
    assert source.num_closed == 1


async def test_comments_while_nothing_comes() -> None:
    source = Source(hangs=True)
    comments: list[bytes] = []
    enough = asyncio.Event()

    async def send(message: Message) -> None:
        comments.append(message.get("body", b""))
        if len(comments) == 3:
            enough.set()

    async def leave() -> Message:
        await enough.wait()
        return {"type": "http.disconnect"}

    await build_answer(source, keep_alive_s=0.01)(SCOPE, leave, send)
    assert comments[1:3] == [b": prefill 43%\n\n"] * 2
    assert source.num_closed == 1


@pytest.mark.parametrize(
    ("done", "total", "comment"),
    [(0, 7, b": prefill 0%\n\n"), (999, 1000, b": prefill 99%\n\n"), (7, 7, b": keep-alive\n\n")],
)
def test_comment(done: int, total: int, comment: bytes) -> None:
    progress = PrefillProgress(num_computed_tokens=done, num_prompt_tokens=total)
    assert keep_alive(progress).encode() == comment


async def test_the_source_is_closed_when_the_client_left_before_anything() -> None:
    source = Source(["a"], hangs=True)

    async def gone() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        await asyncio.Event().wait()

    await build_answer(source)(SCOPE, gone, send)
    assert source.num_closed == 1


async def test_a_client_that_reads_nothing_ends_the_stream() -> None:
    source = Source(["a"], hangs=True)

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()

    with pytest.raises(SendTimeoutError):
        await build_answer(source, send_timeout_s=0.01)(SCOPE, stay, send)
    assert source.num_closed == 1


def test_streams_finish_when_the_server_is_told_to_stop() -> None:
    AppStatus.enable_automatic_graceful_drain_mode()
    sse.let_streams_finish()
    assert not AppStatus.enable_automatic_graceful_drain
