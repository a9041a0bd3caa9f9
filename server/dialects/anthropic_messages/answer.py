"""Execution of a job and its answer as a message, streamed or whole."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from fastapi import Request
from sse_starlette.event import ServerSentEvent
from starlette.responses import Response

from server.dialects.answers import ignored_header, stream_headers, whole_response
from server.dialects.anthropic_messages.encode import (
    PING,
    MessageEncoder,
    MessageFold,
    MessageHead,
    encode_error_event,
)
from server.dialects.fold import joined
from server.dialects.opening import open_stream
from server.dialects.parts import ServerParts
from server.disconnect import ClientGone, while_connected
from server.service import generation
from server.service.job import GenerationJob
from server.service.pending_stream import PendingStream
from server.sse import Progress, Start, StreamingAnswer, describe
from server.text.events import OutputEvent


@dataclass(frozen=True, slots=True)
class MessageForm:
    """Form of the answer that a request specifies."""

    is_streamed: bool
    hides_thinking: bool
    with_edits: bool


async def answer(
    parts: ServerParts, request: Request, job: GenerationJob, form: MessageForm, ignored: Iterable[str]
) -> Response:
    """Generate `job` and return the response. Raises APIError and EngineError before the first byte."""
    config = parts.config
    opened = await open_stream(parts, request, job, is_streamed=form.is_streamed)
    pending, stream = opened.pending, opened.stream
    headers = ignored_header(ignored) | opened.headers | stream_headers(stream)
    if form.is_streamed:
        encoder = _LateEncoder(job, form, pending, opened.model_id)
        return StreamingAnswer(
            pending,
            encode=encoder.encode,
            encode_error=encode_error_event,
            keep_alive_s=config.stream.keep_alive_s,
            send_timeout_s=config.security.send_timeout_s,
            headers=headers,
            write_silence=write_ping,
            start=Start(encoder.start, config.stream.keep_alive_s / 2),  # before the first ping
        )
    assert stream is not None
    try:
        async with aclosing(stream):
            fold = await while_connected(request.receive, _collect(stream, job, form))
    except ClientGone:
        return Response(status_code=499)
    return whole_response(await joined(fold.pieces()), headers)


def write_ping(progress: Progress) -> ServerSentEvent:
    """Return a keep-alive for a silent stream: Anthropic's own event, and a human-readable comment."""
    return ServerSentEvent(PING, event="ping", comment=describe(progress), sep="\n")


class _LateEncoder:
    """A stream's encoder, built with its first events if they come soon: only then is the cached part known."""

    def __init__(self, job: GenerationJob, form: MessageForm, pending: PendingStream, model_id: str) -> None:
        self._job, self._form, self._pending, self._model_id = job, form, pending, model_id
        self._encoder: MessageEncoder | None = None
        self._is_known = False

    def start(self) -> bytes:
        """Return the beginning of the message, with what is known of its prompt: nothing while the model loads."""
        stream = self._pending.stream
        head = _head(self._job, self._form, stream) if stream else _unknown(self._job, self._form, self._model_id)
        self._encoder = MessageEncoder(head)
        return self._encoder.encode(())

    async def encode(self, events: Sequence[OutputEvent]) -> bytes:
        if not self._is_known:
            self._is_known = True
            head = _head(self._job, self._form, self._pending.result())
            self._encoder = self._encoder or MessageEncoder(head)
            self._encoder.head = head
        assert self._encoder is not None
        return self._encoder.encode(events)


def _unknown(job: GenerationJob, form: MessageForm, model_id: str) -> MessageHead:
    return MessageHead(job.request_id, model_id, 0, 0, hides_thinking=form.hides_thinking, with_edits=form.with_edits)


def _head(job: GenerationJob, form: MessageForm, stream: generation.OutputStream) -> MessageHead:
    return MessageHead(
        job.request_id,
        stream.model_id,
        stream.num_prompt_tokens,
        stream.num_cached_tokens,
        is_cut_by_context=job.max_tokens is None or stream.shortened_to is not None,
        hides_thinking=form.hides_thinking,
        with_edits=form.with_edits,
    )


async def _collect(stream: generation.OutputStream, job: GenerationJob, form: MessageForm) -> MessageFold:
    fold: MessageFold | None = None
    async for batch in stream:
        if fold is None:
            fold = MessageFold(_head(job, form, stream))
        fold.add(batch)
    assert fold is not None, "a stream that ends has said so"
    return fold
