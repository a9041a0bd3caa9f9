"""Turn a job into the response of any API, streamed or whole.

Reads no field of a request except whether it streams. Imports no dialect.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from fastapi import Request
from starlette.responses import Response

from server.dialects.fold import joined
from server.dialects.openai_errors import encode_error
from server.dialects.openai_shared import SamplingFields
from server.dialects.openai_written import Head, dump, encode_usage, quote
from server.dialects.opening import open_stream
from server.dialects.parts import ServerParts
from server.dialects.priorities import priority_header, tier_of
from server.disconnect import ClientGone, while_connected
from server.errors import APIError
from server.heap import give_back
from server.service import generation
from server.service.job import GenerationJob
from server.service.pending_stream import PendingStream
from server.sse import Start, StreamingAnswer
from server.text.events import OutputEvent, Usage

logger = logging.getLogger("pippin.dialects")

IGNORED_HEADER = "X-Pippin-Ignored-Fields"
TRUNCATED_HEADER = "X-Pippin-Truncated-Tokens"
SHORTENED_HEADER = "X-Pippin-Max-Tokens"
DONE = "data: [DONE]\n\n"
_LARGE_BYTES = 8 << 20


def ignored_header(names: Iterable[str]) -> dict[str, str]:
    """Return the header that lists ignored fields, restricted to valid header characters and length."""
    clean = sorted({re.sub(r"[^A-Za-z0-9_.-]", "?", name[:64]) for name in names})
    if not clean:
        return {}
    logger.info("ignored unknown fields: %s", ", ".join(clean[:32]))
    return {IGNORED_HEADER: ", ".join(clean[:32])}


def stream_headers(stream: generation.OutputStream | None) -> dict[str, str]:
    """Return the headers that report changes to a request; empty if `stream` is None, when they are not known yet."""
    headers: dict[str, str] = {}
    if stream is not None and stream.num_truncated_tokens:
        headers[TRUNCATED_HEADER] = str(stream.num_truncated_tokens)
    if stream is not None and stream.shortened_to is not None:
        headers[SHORTENED_HEADER] = str(stream.shortened_to)
    return headers


def whole_response(written: bytes, headers: Mapping[str, str]) -> Response:
    """Return a JSON answer that is not streamed. The memory of a large one is given back to the system."""
    if len(written) > _LARGE_BYTES:
        asyncio.get_running_loop().run_in_executor(None, give_back)
    return Response(written, headers=headers, media_type="application/json")


def encode_error_event(error: APIError) -> bytes:
    """Return the error as the last event of a stream."""
    return f"data: {json.dumps(encode_error(error))}\n\n".encode()


class ChunkEncoder:
    """Encoder of one stream's batches, in order, one chunk per event; Usage adds the end and `[DONE]`."""

    def __init__(
        self,
        head: Head,
        name: str,
        include_usage: bool,
        encode_choices: Callable[[Any], Sequence[str]],
        prepare: Callable[[Sequence[OutputEvent]], Awaitable[None]] | None = None,
    ) -> None:
        """`encode_choices` receives the events of its dialect's jobs, except Usage.

        `prepare` is awaited before each batch is encoded, for work that takes long.
        """
        self.prepare = prepare
        known = (
            f'"id":{quote(head.id)},"object":"{name}","created":{head.created},"model":{quote(head.model)}{head.tier}'
        )
        self._before = f'data: {{{known},"choices":[{{'
        self._after = '}],"usage":null}\n\n' if include_usage else "}]}\n\n"
        self._usage = f'data: {{{known},"choices":[],"usage":' if include_usage else None
        self._encode_choices = encode_choices

    def encode(self, events: Sequence[OutputEvent]) -> bytes:
        written = ""
        for event in events:
            if isinstance(event, Usage):
                written += self._end(event)
            else:
                for choice in self._encode_choices(event):
                    written += self._before + choice + self._after
        return written.encode()

    def _end(self, usage: Usage) -> str:
        if self._usage is None:
            return DONE
        return f"{self._usage}{dump(encode_usage(usage))}}}\n\n{DONE}"


class StreamEncoder(Protocol):
    """Encoder of one stream's batches, in order. `prepare`, if not None, is awaited before each."""

    @property
    def prepare(self) -> Callable[[Sequence[OutputEvent]], Awaitable[None]] | None: ...

    def encode(self, events: Sequence[OutputEvent]) -> bytes: ...


class WholeAnswer(Protocol):
    """JSON answer of one job, built as its events arrive."""

    def add(self, events: Sequence[Any]) -> None:
        """Take more events of a job of its dialect. Raises InvalidRequest if the answer becomes too large."""

    def pieces(self) -> Iterable[str]:
        """Yield the whole answer as JSON."""


@dataclass(frozen=True, slots=True)
class AnswerWriters:
    """Writers of one dialect's answers."""

    build_encoder: Callable[[Head, bool], StreamEncoder]
    """Takes the head and whether to include usage."""
    build_fold: Callable[[Head], WholeAnswer]
    """Builds the JSON answer."""
    encode_error: Callable[[APIError], bytes] = encode_error_event
    """Builds the last event of a stream that fails."""
    starts_at_once: bool = False
    """Whether a stream begins with the encoder's output for no events."""


async def answer(
    parts: ServerParts,
    request: Request,
    job: GenerationJob,
    fields: SamplingFields,
    writers: AnswerWriters,
    ignored: Iterable[str],
    *,
    truncates: bool | None = None,
) -> Response:
    """Generate `job` and answer it, streamed or whole. Raises APIError and EngineError before the first byte.

    `truncates`: whether the oldest turns of a prompt that is too long are left out; None: as configured.
    """
    opened = await open_stream(parts, request, job, is_streamed=bool(fields.stream), truncates=truncates)
    pending, stream = opened.pending, opened.stream
    priority = request.state.tenant.allow(job.priority)
    headers = ignored_header(ignored) | opened.headers | stream_headers(stream) | priority_header(fields, priority)
    tier = None if fields.service_tier is None else tier_of(priority)
    if fields.stream:
        encoder = _LateEncoder(job, fields, writers, pending, tier)
        return StreamingAnswer(
            pending,
            encode=encoder.encode,
            encode_error=writers.encode_error,
            keep_alive_s=parts.config.stream.keep_alive_s,
            send_timeout_s=parts.config.security.send_timeout_s,
            headers=headers,
            start=Start(partial(encoder.start, opened.model_id)) if writers.starts_at_once else None,
        )
    assert stream is not None
    fold = writers.build_fold(_head(job, stream, tier))
    try:
        async with aclosing(stream):
            await while_connected(request.receive, _collect(stream, fold))
    except ClientGone:
        return Response(status_code=499)
    return whole_response(await joined(fold.pieces()), headers)


class _LateEncoder:
    """Encoder of a stream, built at the first event: the content of a chunk is unknown before."""

    def __init__(
        self,
        job: GenerationJob,
        fields: SamplingFields,
        writers: AnswerWriters,
        pending: PendingStream,
        tier: str | None,
    ) -> None:
        self._job, self._writers, self._pending, self._tier = job, writers, pending, tier
        self._include_usage = bool(fields.stream_options and fields.stream_options.include_usage)
        self._encoder: StreamEncoder | None = None

    def start(self, model_id: str) -> bytes:
        """Return the beginning of the stream, before its first event."""
        head = Head(self._job.request_id, int(time.time()), model_id, None)
        self._encoder = self._writers.build_encoder(head, self._include_usage)
        return self._encoder.encode(())

    async def encode(self, events: Sequence[OutputEvent]) -> bytes:
        if self._encoder is None:
            head = _head(self._job, self._pending.result(), self._tier)
            self._encoder = self._writers.build_encoder(head, self._include_usage)
        if self._encoder.prepare is not None:
            await self._encoder.prepare(events)
        return self._encoder.encode(events)


def _head(job: GenerationJob, stream: generation.OutputStream, tier: str | None) -> Head:
    return Head(job.request_id, int(time.time()), stream.model_id, stream.transcript, tier)


async def _collect(stream: generation.OutputStream, fold: WholeAnswer) -> None:
    async for batch in stream:
        fold.add(batch)
