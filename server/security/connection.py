"""Limits of connections, below HTTP: their number, and the duration and size of a request's head.

Uvicorn's protocol with a timer and two counters. The gate refuses requests that arrive complete but exceed a limit.
Also covers what uvicorn leaves out of HTTP: responses to HTTP/1.0 clients, and to half-closed clients that still read.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

import httptools
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from server.config import SecurityConfig
from server.error_bodies import ErrorBodies
from server.errors import APIError, InvalidRequest
from server.security.refusals import EncodingRefused, HeadersTooLarge, TooManyConnections

PROBE_PLACES = 64
"""Connections beyond the limit that are still served: /health answers on them, everything else gets a 503."""
_SURPLUS_TIMEOUT_S = 2.0
_LINGER_S = 0.5
_FIRST_PROBE_S, _MOST_PROBE_S = 0.05, 5.0
"""Delay between a client's end of sending and the second probe of whether it still reads; and the longest delay between
later ones.
"""
_OVERHEAD = 8
"""Factor by which chunked framing may exceed a body's bytes; a chunk of one byte takes six."""


def bounded_protocol(
    limits: SecurityConfig,
    max_connections: int,
    error_bodies: ErrorBodies,
    file_bytes: Mapping[str, int] | None = None,
) -> type[BoundedConnection]:
    """Return the class to instantiate for each connection. `file_bytes`: the largest body at paths of uploads."""

    class Connection(BoundedConnection):
        _limits = limits
        _max_connections = max_connections
        _error_bodies = error_bodies
        _file_bytes = file_bytes or {}

    return Connection


class BoundedConnection(HttpToolsProtocol):
    """A connection of a class made by `bounded_protocol`."""

    _limits: SecurityConfig
    _max_connections: int
    _error_bodies: ErrorBodies
    _file_bytes: Mapping[str, int]

    @classmethod
    def take_limits(cls, limits: SecurityConfig) -> None:
        """Apply these limits to every connection of this class."""
        cls._limits = limits

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.url = b""
        self._timer: asyncio.TimerHandle | None = None
        self._num_head_bytes = 0
        self._num_raw_bytes = 0
        self._most_file_bytes = 0
        """Size limit of the body, if it is an upload."""
        self._num_headers = 0
        self._is_in_head = False
        self._is_in_body = False
        self._is_surplus = False
        self._is_refused = False
        self._refusal: APIError | None = None
        """Error found while parsing a head; sent once the parser is done."""
        self._encodings: list[bytes] = []
        self._probe: asyncio.TimerHandle | None = None
        self._unanswered: deque[RequestResponseCycle] = deque()
        """Requests in the order of their responses: the first is in progress, the others wait."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        num_surplus = len(self.connections) - self._max_connections
        self._is_surplus = num_surplus > 0
        if num_surplus > 2 * PROBE_PLACES:
            self.transport.abort()
        elif num_surplus > PROBE_PLACES:
            self._refuse(TooManyConnections())
        else:
            self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_watching()
        self._stop_probing()
        self._drop_requests()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_refused or self.transport.is_closing():
            return
        if self._is_in_body:
            self._num_raw_bytes += len(data)
        elif self._is_in_head:
            self._num_head_bytes += len(data)
        super().data_received(data)
        if self._refusal is not None and not self._is_refused:
            self._refuse(self._refusal)
        if self._is_refused or self.transport.is_closing():
            return
        if self._num_head_bytes > self._limits.max_header_bytes or self._num_headers > self._limits.max_headers:
            self._refuse(
                HeadersTooLarge(f"The request's headers are larger than {self._limits.max_header_bytes} bytes.")
            )
        elif self._num_raw_bytes > _OVERHEAD * max(self._limits.max_body_bytes, self._most_file_bytes):
            self.transport.close()
        else:
            self._watch()

    def eof_received(self) -> bool:  # type: ignore[override]
        """Handle the client's end of sending. Return whether the connection stays open for pending responses."""
        if not self._unanswered or self._is_in_head or self._is_in_body or self._is_refused:
            return False
        self._unanswered[-1].keep_alive = False
        self._ask_whether_it_listens(_FIRST_PROBE_S)
        return True

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._encodings = []
        self._num_raw_bytes = self._num_head_bytes = self._num_headers = 0
        self._is_in_head = True
        self.scope["state"]["is_surplus"] = self._is_surplus

    def on_header(self, name: bytes, value: bytes) -> None:
        self._num_headers += 1
        if self._is_in_body:  # trailers after a body are not headers
            return
        super().on_header(name, value)
        if name.lower() == b"transfer-encoding":
            self._encodings.append(value.strip().lower())

    def on_headers_complete(self) -> None:
        self._num_head_bytes = self._num_headers = 0
        self._is_in_head, self._is_in_body = False, True
        self._most_file_bytes = self._file_bytes.get(_path_of(self.url), 0) if self._file_bytes else 0
        if self._encodings not in ([], [b"chunked"]):
            self._refusal = EncodingRefused()
            return
        before = self.cycle
        super().on_headers_complete()
        if self.cycle is not before:
            self._unanswered.append(self.cycle)

    def on_body(self, body: bytes) -> None:
        if self._refusal is None:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._is_in_body = False
        if self._refusal is None:
            super().on_message_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        is_old = cycle.scope["http_version"] == "1.0"
        super()._start_asgi_task(cycle, _without_chunks(app, cycle) if is_old else app)

    def on_response_complete(self) -> None:
        self._stop_probing()
        self._unanswered.popleft()
        super().on_response_complete()
        self._watch()

    def send_400_response(self, msg: str) -> None:
        self._refuse(InvalidRequest("This is not an HTTP/1.1 request."))

    def _unsupported_upgrade_warning(self) -> None:
        """Ignore an offer to upgrade the protocol, without a warning."""

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._see_it_off()

    def _see_it_off(self, num_left: int = -1) -> None:
        """Wait until the client has read a closed connection's data; abort if it reads nothing."""
        self._stop_watching()
        num_unread = self.transport.get_write_buffer_size()
        if num_unread == num_left:
            self.transport.abort()
        elif num_unread:
            self._timer = self.loop.call_later(self._limits.send_timeout_s, self._see_it_off, num_unread)

    def _watch(self) -> None:
        """Limit the time in which the client must send all it owes; do not limit its wait for a response."""
        if self.transport.is_closing():
            self._see_it_off()
        elif self._unanswered:
            self._stop_watching()
        elif self._timer is None:
            timeout_s = _SURPLUS_TIMEOUT_S if self._is_surplus else self._limits.read_timeout_s
            self._timer = self.loop.call_later(timeout_s, self.timeout_keep_alive_handler)

    def _stop_watching(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _ask_whether_it_listens(self, again_s: float) -> None:
        """Probe whether a half-closed client still reads or has closed: only sending reveals it.

        `100 Continue` may precede any response, and has no effect here. A closed socket answers it with a reset, which
        the next probe runs into: that ends the connection and its work.
        """
        self._stop_probing()
        if self.transport.is_closing() or not self._unanswered:
            return
        cycle = self._unanswered[0]
        if not cycle.response_started and cycle.scope["http_version"] == "1.1":  # not part of HTTP/1.0
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        next_s = min(_MOST_PROBE_S, 4 * again_s)
        self._probe = self.loop.call_later(again_s, self._ask_whether_it_listens, next_s)

    def _stop_probing(self) -> None:
        if self._probe is not None:
            self._probe.cancel()
            self._probe = None

    def _refuse(self, error: APIError) -> None:
        """Send an error and close. A response in progress is cut short instead.

        Incoming data is discarded for a moment: closing with unread bytes would lose the error response.
        """
        self._stop_watching()
        self._is_refused = True
        has_begun = bool(self._unanswered) and self._unanswered[0].response_started
        self._drop_requests()
        if has_begun:
            self.transport.close()
            self._see_it_off()
        else:
            body = self._error_bodies.write(_path_of(self.url), error)
            head = {**error.headers, "Content-Type": "application/json", "Content-Length": len(body)}
            head["Connection"] = "close"
            lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
            self.transport.write(f"HTTP/1.1 {error.status} {_PHRASES[error.status]}\r\n{lines}\r\n".encode() + body)
            self.transport.write_eof()
            self._timer = self.loop.call_later(_LINGER_S, self.timeout_keep_alive_handler)

    def _drop_requests(self) -> None:
        """Mark every request here as disconnected for the application. Uvicorn does so only for the last one."""
        self.pipeline.clear()
        for cycle in self._unanswered:
            cycle.disconnected = True
            cycle.message_event.set()


def _path_of(url: bytes) -> str:
    """Return the path of a request's first line, as far as it was read; empty if there is none."""
    try:
        return unquote((httptools.parse_url(url).path or b"").decode("ascii"))
    except (httptools.HttpParserInvalidURLError, UnicodeDecodeError):
        return ""


def _without_chunks(app: ASGI3Application, cycle: RequestResponseCycle) -> ASGI3Application:
    """Return the application for an HTTP/1.0 client: a response of unknown length ends with its connection."""

    async def run(scope: Any, receive: Any, send: Any) -> None:
        is_open_ended = False

        async def send_plain(message: Any) -> None:
            nonlocal is_open_ended
            if message["type"] == "http.response.start" and not cycle.disconnected:
                headers = [(name.lower(), value) for name, value in message.get("headers", [])]
                is_open_ended = all(name != b"content-length" for name, _ in headers)
                if is_open_ended:
                    cycle.response_started, cycle.chunked_encoding = True, False
                    head = [(name, value) for name, value in headers if name != b"connection"]
                    lines = b"".join(name + b": " + value + b"\r\n" for name, value in head)
                    cycle.transport.write(STATUS_LINE[message["status"]] + lines + b"connection: close\r\n\r\n")
                    return
            if is_open_ended and message["type"] == "http.response.body":
                cycle.expected_content_length = len(message.get("body", b""))
            await send(message)

        await app(scope, receive, send_plain)

    return run


_PHRASES = {
    400: "Bad Request",
    431: "Request Header Fields Too Large",
    501: "Not Implemented",
    503: "Service Unavailable",
}
