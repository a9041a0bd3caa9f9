"""Execution of a job and its answer: lines of JSON, or one object. Independent of request fields."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastapi import Request
from starlette.responses import Response

from server.dialects.answers import stream_headers, whole_response
from server.dialects.ollama.encode import Fold, Kind, LineEncoder, encode_silence
from server.dialects.ollama.errors import encode_error_line
from server.dialects.ollama.published import LINES
from server.dialects.opening import open_stream
from server.dialects.parts import ServerParts
from server.disconnect import ClientGone, while_connected
from server.service import generation
from server.service.job import GenerationJob
from server.service.registry import ServedModel
from server.sse import StreamingAnswer
from server.text.events import OutputEvent

CONTEXT_HEADER = "X-Pippin-Context-Limit"
"""Header with the available context, for a request that requires more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerWish:
    """Form of a job's answer. `context`: tokens it should have room for; `leaves`: unload the model afterwards."""

    kind: Kind
    is_streamed: bool
    context: int | None = None
    leaves: bool = False
    headers: dict[str, str]


async def answer(
    parts: ServerParts, request: Request, model: ServedModel, job: GenerationJob, wish: AnswerWish
) -> Response:
    """Generate `job` and return the response. Raises APIError and EngineError before the first byte."""
    config = parts.config
    leave = partial(parts.registry.residency.leave, model) if wish.leaves else None
    opened = await open_stream(parts, request, job, is_streamed=wish.is_streamed, on_close=leave)
    pending, stream = opened.pending, opened.stream
    headers = wish.headers | opened.headers | _headers(model, stream, wish.context)
    if wish.is_streamed:
        encoder = LineEncoder(wish.kind, job.model, lambda: pending.result().timings)
        return StreamingAnswer(
            pending,
            encode=_awaitable(encoder),
            encode_error=encode_error_line,
            write_silence=lambda progress: encode_silence(wish.kind, job.model),
            keep_alive_s=config.stream.keep_alive_s,
            send_timeout_s=config.security.send_timeout_s,
            headers=headers,
            media_type=LINES,
        )
    assert stream is not None
    fold = Fold(wish.kind, job.model)
    try:
        async with aclosing(pending):
            await while_connected(request.receive, _collect(stream, fold))
    except ClientGone:
        return Response(status_code=499)
    return whole_response(fold.write(stream.timings).encode(), headers)


def _awaitable(encoder: LineEncoder) -> Callable[[Sequence[OutputEvent]], Coroutine[Any, Any, bytes]]:
    async def encode(events: Sequence[OutputEvent]) -> bytes:
        return encoder.encode(events)

    return encode


def _headers(model: ServedModel, stream: generation.OutputStream | None, context: int | None) -> dict[str, str]:
    """Return headers for ignored or changed fields, as far as known when the answer begins."""
    found = stream_headers(stream)
    if stream is not None and context is not None and model.info is not None and context > model.info.context_limit:
        found[CONTEXT_HEADER] = str(model.info.context_limit)
    return found


async def _collect(stream: generation.OutputStream, fold: Fold) -> None:
    async for batch in stream:
        fold.add(batch)
