"""The outermost layer of every request: its id, the limit of its body, the last handler of errors.

Pure ASGI, so that a stream has no cost per event. Independent of dialects, routes and engines.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import uuid
from collections.abc import Callable, Mapping
from functools import partial

from sse_starlette.sse import SendTimeoutError
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.error_bodies import ErrorBodies
from server.errors import APIError, BodyTooLarge, ErrorCounts, InternalError, count_error
from server.logs import current_request_id
from server.recent_errors import RecentErrors

logger = logging.getLogger("pippin.http")

LINGER_S = 2.0
_SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


class RequestEnvelope:
    """Wrapper of the application: request ids, body limit, a 500 for uncaught errors, a count of errors."""

    def __init__(
        self,
        app: ASGIApp,
        error_bodies: ErrorBodies,
        *,
        max_body_bytes: int,
        error_counts: ErrorCounts | None = None,
        recent_errors: RecentErrors | None = None,
        file_bytes: Mapping[str, int] | None = None,
    ) -> None:
        """`file_bytes`: size limits of bodies at upload paths."""
        self._app = app
        self._error_bodies = error_bodies
        self._max_body_bytes = max_body_bytes
        self._file_bytes = dict(file_bytes or {})
        self._error_counts = ErrorCounts() if error_counts is None else error_counts
        self._recent_errors = recent_errors or RecentErrors()

    def take_limits(self, max_body_bytes: int) -> None:
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        request_id = _choose_id(headers.get("x-request-id"))
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        token = current_request_id.set(request_id)
        write_error = partial(self._error_bodies.write, scope["path"])
        id_header = self._error_bodies.id_header(scope["path"])
        limit = self._file_bytes.get(scope["path"], self._max_body_bytes)
        exchange = _Exchange(receive, send, request_id, limit, write_error, id_header)
        try:
            if _declared_length(headers) > limit:
                await exchange.refuse_body()
            else:
                await exchange.run(self._app, scope)
        finally:
            current_request_id.reset(token)
            error = exchange.error or state.get("error")
            count_error(self._error_counts, error)
            self._recent_errors.add(error, request_id)


class _Exchange:
    """One request and its answer as they pass through. Owned by one call of the envelope."""

    def __init__(
        self,
        receive: Receive,
        send: Send,
        request_id: str,
        max_body_bytes: int,
        write_error: Callable[[APIError], bytes],
        id_header: str | None = None,
    ) -> None:
        self._receive = receive
        self._send = send
        self._request_id = request_id
        self._limit = max_body_bytes
        self._write_error = write_error
        self._id_headers = ("X-Request-Id",) if id_header is None else ("X-Request-Id", id_header)
        self._num_body_bytes = 0
        self._has_body_left = True
        self._is_too_large = False
        self._is_started = False
        self.error: APIError | None = None
        """Error answered here."""

    async def run(self, app: ASGIApp, scope: Scope) -> None:
        try:
            await app(scope, self.receive, self.send)
        except SendTimeoutError:
            logger.warning("the client stopped reading; connection closed")
            await _cut_off(self._send)
            return
        except Exception:
            # Last handler of every request. An answer that has begun is cut short.
            if not self._is_too_large:
                logger.exception("unexpected error")
                if not self._is_started:
                    await self._answer(InternalError())
        if self._is_too_large:
            await self.refuse_body()

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self._num_body_bytes += len(message.get("body", b""))
            self._has_body_left = bool(message.get("more_body", False))
            if self._num_body_bytes > self._limit:
                self._is_too_large = True
                raise BodyTooLarge(self._limit)
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            if self._is_too_large:
                return
            self._is_started = True
            headers = MutableHeaders(scope=message)
            for name in self._id_headers:
                headers[name] = self._request_id
        elif self._is_too_large and not self._is_started:
            # Drop the application's answer to the partial body: the answer is a 413.
            return
        await self._send(message)

    async def refuse_body(self) -> None:
        if not self._is_started:
            await self._answer(BodyTooLarge(self._limit), linger=True)

    async def _answer(self, error: APIError, *, linger: bool = False) -> None:
        self.error = error
        body = self._write_error(error)
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            *((name.lower().encode(), self._request_id.encode()) for name in self._id_headers),
        ]
        if linger:
            headers.append((b"connection", b"close"))
        await self._send({"type": "http.response.start", "status": error.status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body, "more_body": True})
        if linger:
            await self._discard_body()
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _discard_body(self) -> None:
        """Read and drop the rest for a moment: closing with unread bytes would lose the answer."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_S):
                while self._has_body_left:
                    message = await self._receive()
                    self._has_body_left = message["type"] == "http.request" and bool(message.get("more_body"))


def _choose_id(wanted: str | None) -> str:
    if wanted is not None and _SANE_ID.fullmatch(wanted):
        return wanted
    return uuid.uuid4().hex


def _declared_length(headers: Headers) -> int:
    declared = headers.get("content-length", "")
    return int(declared) if declared.isdecimal() else 0


async def _cut_off(send: Send) -> None:
    """End the connection without flushing unread bytes, if the transport is reachable.

    A close would wait for the unread bytes without limit. Uvicorn's `send` is a method of the object with the
    transport; on other servers, returning without an end closes the connection.
    """
    transport = getattr(getattr(send, "__self__", None), "transport", None)
    if transport is not None:
        transport.abort()
        await asyncio.sleep(0)
