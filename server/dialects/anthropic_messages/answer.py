"""The way from a job to a message, streamed or whole."""

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
from server.sse import Progress, StreamingAnswer, describe
from server.text.events import OutputEvent


@dataclass(frozen=True, slots=True)
class MessageForm:
    """The form of an answer, as its request asks for it."""

    is_streamed: bool
    hides_thinking: bool
    with_edits: bool


async def answer(
    parts: ServerParts, request: Request, job: GenerationJob, form: MessageForm, ignored: Iterable[str]
) -> Response:
    """Generate `job` and answer it. Raises APIError and EngineError before the first byte."""
    config = parts.config
    pending, stream = await open_stream(parts, request, job, is_streamed=form.is_streamed)
    headers = ignored_header(ignored) | stream_headers(stream)
    if form.is_streamed:
        return StreamingAnswer(
            pending,
            encode=_LateEncoder(job, form, pending).encode,
            encode_error=encode_error_event,
            keep_alive_s=config.stream.keep_alive_s,
            send_timeout_s=config.security.send_timeout_s,
            headers=headers,
            write_silence=write_ping,
        )
    assert stream is not None
    try:
        async with aclosing(stream):
            fold = await while_connected(request.receive, _collect(stream, job, form))
    except ClientGone:
        return Response(status_code=499)
    return whole_response(await joined(fold.pieces()), headers)


def write_ping(progress: Progress) -> ServerSentEvent:
    """Write what keeps a silent stream open: Anthropic's own event, and a comment for people."""
    return ServerSentEvent(PING, event="ping", comment=describe(progress), sep="\n")


class _LateEncoder:
    """A stream's encoder, built with its first events: only then is it known what was cached."""

    def __init__(self, job: GenerationJob, form: MessageForm, pending: PendingStream) -> None:
        self._job, self._form, self._pending = job, form, pending
        self._encoder: MessageEncoder | None = None

    async def encode(self, events: Sequence[OutputEvent]) -> bytes:
        if self._encoder is None:
            self._encoder = MessageEncoder(_head(self._job, self._form, self._pending.result()))
        return self._encoder.encode(events)


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
