"""An event stream as an answer: over sse-starlette, with errors after the first byte as one last event.

Sends comments when idle and limits how long a client may stop reading; independent of events and their encoding.
Always closes its source when the answer ends.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sse_starlette.event import ServerSentEvent
from sse_starlette.sse import AppStatus, EventSourceResponse
from starlette.types import Receive, Scope, Send

from mlx_backend.api.errors import EngineError
from mlx_backend.api.interface import LoadProgress, PrefillProgress
from server.errors import APIError, note_error, to_api_error

logger = logging.getLogger("pippin.stream")


Progress = PrefillProgress | LoadProgress


class EventSource(Protocol):
    """Source of a stream: batches of events, each batch holding all events available at once."""

    def __aiter__(self) -> AsyncIterator[Sequence[Any]]: ...

    async def aclose(self) -> None: ...

    @property
    def progress(self) -> Progress: ...


@dataclass(frozen=True, slots=True)
class Start:
    """Start of a stream that is sent if no event arrives within `after_s`, because clients wait for it."""

    write: Callable[[], bytes]
    after_s: float = 0.0


class StreamingAnswer(EventSourceResponse):
    """Server-sent events of a source; one write per batch."""

    def __init__(
        self,
        source: EventSource,
        *,
        encode: Callable[[Sequence[Any]], Awaitable[bytes]],
        encode_error: Callable[[APIError], bytes],
        keep_alive_s: float,
        send_timeout_s: float,
        headers: Mapping[str, str],
        media_type: str = "text/event-stream",
        write_silence: Callable[[Progress], ServerSentEvent | bytes] | None = None,
        start: Start | None = None,
    ) -> None:
        """`media_type`: for a dialect whose streams are not events.

        `write_silence`: returns what is sent on an idle stream; None: a comment.
        """
        write_silence = write_silence or keep_alive
        super().__init__(
            self._encoded(source, encode, encode_error, start),
            headers=headers,
            media_type=media_type,
            sep="\n",
            ping=keep_alive_s,
            ping_message_factory=lambda: write_silence(source.progress),  # type: ignore[arg-type, return-value]
            send_timeout=send_timeout_s,
        )
        self._source = source
        self._error: APIError | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Not in the generator, which never runs if the client leaves before its first event.
        try:
            await super().__call__(scope, receive, send)
        finally:
            if self._error is not None:
                note_error(scope, self._error)
            await self._source.aclose()

    async def _encoded(
        self,
        source: EventSource,
        encode: Callable[[Sequence[Any]], Awaitable[bytes]],
        encode_error: Callable[[APIError], bytes],
        start: Start | None,
    ) -> AsyncIterator[bytes]:
        first: asyncio.Task[Sequence[Any]] | None = None
        try:
            batches = aiter(source)
            if start is not None:
                first = asyncio.create_task(_first_of(batches))
                done, _ = await asyncio.wait({first}, timeout=start.after_s)
                if not done:
                    yield start.write()
                if chunk := await encode(await first):
                    yield chunk
            async for events in batches:
                if chunk := await encode(events):
                    yield chunk
        except Exception as error:
            # The status is sent: any error can only be reported as an event.
            if not isinstance(error, (APIError, EngineError)):
                logger.exception("unexpected error in a stream")
            self._error = to_api_error(error)
            yield encode_error(self._error)
        finally:
            if first is not None and not first.done():
                first.cancel()
                await asyncio.wait({first})


async def _first_of(batches: AsyncIterator[Sequence[Any]]) -> Sequence[Any]:
    """Return the first batch; empty if there is none."""
    async for events in batches:
        return events
    return ()


def keep_alive(progress: Progress) -> ServerSentEvent:
    """Return a comment: the share of the model loaded or of the prompt computed, or just a sign of life."""
    return ServerSentEvent(comment=describe(progress), sep="\n")


def describe(progress: Progress) -> str:
    """Describe the state of a silent stream, in two words."""
    if isinstance(progress, LoadProgress):
        what, done, total = "loading", progress.done_bytes, progress.total_bytes
    else:
        what, done, total = "prefill", progress.num_computed_tokens, progress.num_prompt_tokens
    return f"{what} {100 * done // total}%" if done < total else "keep-alive"


def let_streams_finish() -> None:
    """Let streams continue when the server is stopped; its own grace period limits them."""
    AppStatus.disable_automatic_graceful_drain()  # type: ignore[no-untyped-call]
