"""Requests of batches to an application in the same process: below the gate, without a socket.

Performs the gate's checks of bodies itself. Plain ASGI, independent of routes.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Scope

from server.batches.answers import Answer
from server.batches.run import Stopped
from server.config import SecurityConfig
from server.error_bodies import ErrorBodies
from server.errors import APIError, BodyTooLarge, InternalError
from server.logs import current_request_id
from server.security.bodies import JSON, check_body
from server.security.tenant import Tenant

logger = logging.getLogger("pippin.batches")


def as_batch(tenant: Tenant) -> Tenant:
    """Return the tenant for batches: the one place that sets the priority of their requests."""
    return replace(tenant, priority="batch")


class InProcess:
    """Sender of one tenant's requests to an application."""

    def __init__(
        self,
        app: ASGIApp,
        error_bodies: ErrorBodies,
        limits: Callable[[], SecurityConfig],
        tenant: Callable[[], Tenant | None],
    ) -> None:
        """`limits`, `tenant`: called for every request, as both may change; None: the tenant has lost access."""
        self._app, self._error_bodies, self._limits, self._tenant = app, error_bodies, limits, tenant

    async def send(self, url: str, body: bytes) -> Answer:
        """Return the answer to a POST. Raises Stopped if the tenant's key is no longer valid."""
        tenant = self._tenant()
        if tenant is None:
            raise Stopped("the key that the batch belongs to is not valid any more")
        request_id = uuid.uuid4().hex
        token = current_request_id.set(request_id)
        try:
            return await self._send(url, body, request_id, as_batch(tenant))
        except APIError as error:
            return self._failed(url, error, request_id)
        except Exception:  # as in the outermost layer of HTTP requests
            logger.exception("unexpected error")
            return self._failed(url, InternalError(), request_id)
        finally:
            current_request_id.reset(token)

    async def _send(self, url: str, body: bytes, request_id: str, tenant: Tenant) -> Answer:
        limits = self._limits()
        if len(body) > limits.max_body_bytes:
            raise BodyTooLarge(limits.max_body_bytes)
        await check_body(body, JSON, limits.max_json_depth, limits.max_json_items)
        exchange = _Exchange(body)
        await self._app(_scope(url, body, request_id, tenant), exchange.receive, exchange.send)
        headers = exchange.headers
        asked = headers.get("retry-after", "")
        wait_s = float(asked) if asked.isdecimal() else None
        return Answer(exchange.status, b"".join(exchange.chunks), request_id, wait_s)

    def _failed(self, url: str, error: APIError, request_id: str) -> Answer:
        return Answer(error.status, self._error_bodies.write(url, error), request_id)


class _Exchange:
    """One request of a client that waits for the whole answer."""

    def __init__(self, body: bytes) -> None:
        self._body: bytes | None = body
        self.status = 500
        self.headers = Headers()
        self.chunks: list[bytes] = []

    async def receive(self) -> Message:
        if self._body is None:
            await asyncio.Event().wait()  # waits to be cancelled, as nothing more arrives
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], Headers(raw=message["headers"])
        else:
            self.chunks.append(message.get("body", b""))


def _scope(url: str, body: bytes, request_id: str, tenant: Tenant) -> Scope:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": url,
        "raw_path": url.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [
            (b"host", b"localhost"),
            (b"content-type", JSON.encode()),
            (b"content-length", str(len(body)).encode()),
        ],
        "client": None,
        "server": None,
        "state": {
            "request_id": request_id,
            "tenant": tenant,
            "is_operator": False,
        },
    }
