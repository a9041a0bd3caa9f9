"""Open the output stream of an answer, for every API: apply the server's policies, then wait for a first status.

Reads no field of a request. Imports no dialect.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf

from fastapi import Request

from server.dialects.parts import ServerParts
from server.dialects.volatile_lines import settle_job
from server.errors import InvalidRequest
from server.service import generation
from server.service.job import GenerationJob
from server.service.pending_stream import PendingStream


@dataclass(frozen=True, slots=True)
class Opened:
    """Parts of an answer. `stream` is None if the answer begins while its model is still loading."""

    pending: PendingStream
    stream: generation.OutputStream | None
    model_id: str
    """The name of the model, or of its adapter, in the answer."""
    headers: dict[str, str]
    """Report of what was done with volatile lines of the prompts."""


async def open_stream(
    parts: ServerParts,
    request: Request,
    job: GenerationJob,
    *,
    is_streamed: bool,
    truncates: bool | None = None,
    on_close: Callable[[], None] | None = None,
) -> Opened:
    """Open the output of `job`, and wait for it as long as its client should wait for a status.

    If an answer is streamed and its model takes long to load, the answer begins without it, and a later failure is an
    event of the stream. Raises APIError and EngineError.

    `truncates`: whether the oldest turns of a prompt that is too long are left out; None: as configured.
    `on_close`: called when the output is closed.
    """
    config = parts.config
    job, settled = settle_job(job, config.api)
    if truncates is None:
        truncates = config.context.on_overflow == "truncate_oldest"
    job = replace(_with_room(job, fits=config.context.on_max_tokens == "fit"), tenant=request.state.tenant)
    model, name = parts.registry.resolve(job.model), parts.registry.name_of(job.model)
    opening = generation.open(parts.registry, job, truncates=truncates, is_whole=not is_streamed)
    pending = PendingStream(opening, model, on_close)
    stream = await pending.wait(config.stream.keep_alive_s if is_streamed else inf)
    return Opened(pending, stream, name, settled)


def _with_room(job: GenerationJob, *, fits: bool) -> GenerationJob:
    """Return the job with the server's policy on long answers. Raises InvalidRequest if -1 is not allowed."""
    if job.max_tokens != -1:
        return replace(job, fits_max_tokens=fits)
    if not fits:
        message = "'max_tokens' is -1: this server takes a number of tokens (context.on_max_tokens: error)."
        raise InvalidRequest(message, param="max_tokens", code="invalid_value")
    return replace(job, max_tokens=None, default_max_tokens=None)
