"""The way from a job to an answer: lines of JSON, or one object. Knows no field of a request."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from math import inf
from typing import Any

from fastapi import Request
from starlette.responses import Response

from server.dialects.answers import stream_headers, whole_response
from server.dialects.ollama.encode import Fold, Kind, LineEncoder, encode_silence
from server.dialects.ollama.errors import encode_error_line
from server.dialects.parts import ServerParts
from server.disconnect import ClientGone, while_connected
from server.service import generation
from server.service.job import GenerationJob
from server.service.pending_stream import PendingStream
from server.service.registry import ServedModel
from server.sse import StreamingAnswer
from server.text.events import OutputEvent

LINES = "application/x-ndjson"
CONTEXT_HEADER = "X-Pippin-Context-Limit"
"""Where more context is wanted than there is: what there is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerWish:
    """How a job is to be answered. `context`: the tokens that it should have room for; `leaves`: the model goes."""

    kind: Kind
    is_streamed: bool
    context: int | None = None
    leaves: bool = False
    headers: dict[str, str]


async def answer(
    parts: ServerParts, request: Request, model: ServedModel, job: GenerationJob, wish: AnswerWish
) -> Response:
    """Generate `job` and answer it. Raises APIError and EngineError before the first byte."""
    config = parts.config
    job = replace(job, tenant=request.state.tenant, fits_max_tokens=config.context.on_max_tokens == "fit")
    truncates = config.context.on_overflow == "truncate_oldest"
    opening = generation.open(parts.registry, job, truncates=truncates, is_whole=not wish.is_streamed)
    leave = partial(parts.registry.residency.leave, model) if wish.leaves else _stay
    pending = _LeavingStream(opening, model, leave)
    # a stream whose model takes long to load begins without it; what goes wrong then is a line
    stream = await pending.wait(config.stream.keep_alive_s if wish.is_streamed else inf)
    headers = wish.headers | _headers(model, stream, wish.context)
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


class _LeavingStream(PendingStream):
    """A job's output, after which something is done."""

    def __init__(
        self,
        opening: Coroutine[Any, Any, generation.OutputStream],
        model: ServedModel,
        leave: Callable[[], None],
    ) -> None:
        super().__init__(opening, model)
        self._leave = leave

    async def aclose(self) -> None:
        await super().aclose()
        self._leave()


def _stay() -> None:
    """Nothing is to be done."""


def _awaitable(encoder: LineEncoder) -> Callable[[Sequence[OutputEvent]], Coroutine[Any, Any, bytes]]:
    async def encode(events: Sequence[OutputEvent]) -> bytes:
        return encoder.encode(events)

    return encode


def _headers(model: ServedModel, stream: generation.OutputStream | None, context: int | None) -> dict[str, str]:
    """Headers for fields that were ignored or changed, as far as known when the answer begins."""
    found = stream_headers(stream)
    if stream is not None and context is not None and model.info is not None and context > model.info.context_limit:
        found[CONTEXT_HEADER] = str(model.info.context_limit)
    return found


async def _collect(stream: generation.OutputStream, fold: Fold) -> None:
    async for batch in stream:
        fold.add(batch)
