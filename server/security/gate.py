"""Checks that every request passes before it is read: headers, host, origin, key, rate and body, in this order.

Plain ASGI. Independent of dialects and routes except the probes, which are open. Stores the `tenant` of the request in
its state.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.config import Config, SecurityConfig
from server.error_answers import answer_error
from server.error_bodies import ErrorBodies
from server.errors import APIError, InvalidRequest
from server.security.bodies import JSON, BodyPlace, BodyRoom, check_body, is_unlabelled, read_body, replay
from server.security.hosts import HostRule, OriginRule
from server.security.keys import RECHECK_S, Key, KeyRing
from server.security.rate import Account, Accounts
from server.security.refusals import (
    AdminRefused,
    HeadersTooLarge,
    HostRefused,
    KeyRefused,
    OriginRefused,
    TooManyConnections,
)
from server.security.tenant import Revocation, Tenant

PROBES = frozenset({"/health", "/ready", "/version"})
METRICS = "/metrics"
ADMIN = ("/admin/", "/v1/load_lora_adapter", "/v1/unload_lora_adapter")
"""Paths that begin so change what is in memory."""
PAGE, PAGE_FILES = "/", "/dashboard/"
"""The dashboard as shipped; it requests its data with a key."""
_OPERATORS = (*ADMIN, METRICS, "/status", PAGE_FILES)
"""For operators of the server, not for every page that may use the API."""
_KEYS_WAIT_S = 1.0
_key_reader = ThreadPoolExecutor(1, thread_name_prefix="keys")
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_CORS_MAX_AGE_S = "600"
_CORS_HEADERS = "authorization, content-type, x-api-key, x-request-id"
_CORS_EXPOSED = (
    "retry-after, x-request-id, x-pippin-ignored-fields, x-pippin-truncated-tokens, x-pippin-max-tokens, "
    "x-pippin-priority, "
    "x-ratelimit-limit-requests, x-ratelimit-remaining-requests, x-ratelimit-reset-requests, "
    "x-ratelimit-limit-tokens, x-ratelimit-remaining-tokens, x-ratelimit-reset-tokens"
)


class Gate:
    """Wraps the application. The constructor raises KeysError for an unusable keys file."""

    def __init__(
        self,
        app: ASGIApp,
        config: Config,
        error_bodies: ErrorBodies,
        *,
        takes_unlabelled: Iterable[str] = (),
        takes_files: Iterable[str] = (),
    ) -> None:
        """`takes_unlabelled`: path prefixes for which a body need not be declared as JSON, unless from a browser.

        `takes_files`: paths of uploads, whose bodies the route reads itself.
        """
        self._files = frozenset(takes_files)
        self._app = app
        self._unlabelled = tuple(f"{prefix}/" for prefix in takes_unlabelled)
        self._error_bodies = error_bodies
        self._limits = config.security
        self._hosts = HostRule(config)
        self._origins = OriginRule(config)
        self._accounts = Accounts(config.security)
        self._bodies = BodyRoom(config.security.max_bodies_bytes)
        path = config.security.keys_file
        self.keys = None if path is None else KeyRing(Path(path).expanduser())
        self._reading: asyncio.Task[None] | None = None
        self._revocations: dict[str, Revocation] = {}
        """Revocations of the keys in use, by hash."""

    def take_limits(self, limits: SecurityConfig) -> None:
        """Apply these limits from the next request on: sizes, times and rates. The keys file stays the same."""
        self._limits = limits
        self._accounts.take_limits(limits)
        self._bodies.most = limits.max_bodies_bytes

    async def refresh_keys(self) -> None:
        """Read the keys file if it has changed and was not just checked. Uses a thread: a disk may hang.

        Requests wait for it, so that a key revoked a second ago is refused, but not for long.
        """
        if self.keys is None:
            return
        if self._reading is None and self.keys.is_due:
            self.keys.begin()
            self._reading = asyncio.create_task(self._read_keys(self.keys))
        if self._reading is not None:
            await asyncio.wait({self._reading}, timeout=_KEYS_WAIT_S)

    def reload_keys(self) -> None:
        """Read the keys file now, if it has changed."""
        if self.keys is not None:
            self._revoke(self.keys.reload())

    async def watch_keys(self) -> None:
        """Check the keys file until cancelled, so that work of a revoked key ends, too."""
        while self.keys is not None:
            await asyncio.sleep(RECHECK_S)
            await self.refresh_keys()

    async def _read_keys(self, keys: KeyRing) -> None:
        try:
            reading = await asyncio.get_running_loop().run_in_executor(_key_reader, keys.read)
            self._revoke(keys.take(reading))
        finally:
            self._reading = None

    def _revoke(self, hashes: frozenset[str]) -> None:
        for hash in hashes:
            if hash in self._revocations:
                self._revocations.pop(hash).revoke()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # WebSockets are not supported, and would bypass the key check
        place = BodyPlace(self._bodies)
        try:
            await self._pass(scope, receive, send, place)
        finally:
            place.let_go()

    async def _pass(self, scope: Scope, receive: Receive, send: Send, place: BodyPlace) -> None:
        headers, more = Headers(scope=scope), _MoreHeaders(send)
        try:
            await self.refresh_keys()
            preflight = self._let_in(scope, headers, more)
            if preflight is not None:
                await preflight(scope, receive, more.send)
                return
            if scope["method"] not in _SAFE and scope["path"] not in self._files:
                body = await read_body(receive, self._limits.read_timeout_s, place)
                if body is None:
                    return  # the client has disconnected
                limits = self._limits
                label = JSON if self._is_json_by_path(scope["path"], headers) else headers.get("content-type", "")
                await check_body(body, label, limits.max_json_depth, limits.max_json_items)
                receive = replay(body, receive)
        except APIError as error:
            await answer_error(self._error_bodies, scope, error)(scope, receive, more.send)
            return
        await self._app(scope, receive, more.send)

    def _is_json_by_path(self, path: str, headers: Headers) -> bool:
        """Return whether an undeclared body, or one with curl's default type, counts as JSON here.

        A page can make a browser send both to another site without a preflight; browsers identify themselves by
        headers.
        """
        is_browser = "origin" in headers or "sec-fetch-site" in headers or "sec-fetch-mode" in headers
        return path.startswith(self._unlabelled) and not is_browser and is_unlabelled(headers.get("content-type", ""))

    def _let_in(self, scope: Scope, headers: Headers, more: _MoreHeaders) -> Response | None:
        """Raise APIError if the request is not allowed; return the response to a browser's preflight, else None."""
        state = scope.setdefault("state", {})
        state["tenant"] = Tenant()
        self._check_headers(scope)
        if state.get("is_surplus") and scope["path"] not in PROBES:
            raise TooManyConnections
        self._check_host(headers)
        if "origin" in headers:
            preflight = self._check_origin(scope, headers, more)
            if preflight is not None:
                return preflight
        key = self._check_key(scope["path"], headers)
        state["is_operator"] = (key is None or key.is_admin) and not self._is_foreign(headers)
        if key is not None and not key.is_admin and scope["method"] not in _SAFE and scope["path"].startswith(ADMIN):
            raise AdminRefused
        if scope["path"] not in PROBES:
            account = self._accounts.of(key)
            state["tenant"] = self._tenant(key, account)
            if scope["method"] not in _SAFE:
                more.add(account.headers)
                account.admit()
        return None

    def _tenant(self, key: Key | None, account: Account) -> Tenant:
        if key is None:
            return Tenant("", account, self._limits.share_prefix_cache)
        revocation = self._revocations.setdefault(key.hash, Revocation())
        return Tenant(key.name, account, self._limits.share_prefix_cache, revocation, key.priority)

    def tenant_named(self, name: str) -> Tenant | None:
        """Return the tenant that the key of this name has; without keys, everybody's. None where there is none."""
        key = self.keys.named(name) if self.keys is not None else None
        if key is None and (name or self.keys is not None):
            return None
        return self._tenant(key, self._accounts.of(key))

    def _check_headers(self, scope: Scope) -> None:
        found, limits = scope["headers"], self._limits
        if len(found) > limits.max_headers:
            raise HeadersTooLarge(f"The request has more than {limits.max_headers} headers.")
        size = sum(len(name) + len(value) for name, value in found)
        if size + len(scope.get("raw_path", b"")) + len(scope["query_string"]) > limits.max_header_bytes:
            raise HeadersTooLarge(f"The request's headers are larger than {limits.max_header_bytes} bytes.")

    def _check_host(self, headers: Headers) -> None:
        hosts = headers.getlist("host")
        if len(hosts) != 1:
            raise InvalidRequest("A request must have exactly one Host header.")
        if not self._hosts.allows(hosts[0]):
            raise HostRefused(hosts[0])

    def _check_origin(self, scope: Scope, headers: Headers, more: _MoreHeaders) -> Response | None:
        origin, method = headers["origin"], scope["method"]
        if OriginRule.is_own(origin, headers["host"]):
            return None
        is_for_local = not scope["path"].startswith(_OPERATORS)
        if not self._origins.is_opened(origin) and not (is_for_local and self._origins.is_local(origin)):
            raise OriginRefused(origin)
        shared = {"Access-Control-Allow-Origin": origin, "Vary": "Origin"}
        if method == "OPTIONS" and "access-control-request-method" in headers:
            return Response(status_code=204, headers={**shared, **_preflight(headers)})
        more.add(lambda: {**shared, "Access-Control-Expose-Headers": _CORS_EXPOSED})
        return None

    def _is_foreign(self, headers: Headers) -> bool:
        """Return whether the request comes from a page that may use only the API."""
        if "origin" not in headers:
            return False
        origin = headers["origin"]
        return not OriginRule.is_own(origin, headers["host"]) and not self._origins.is_opened(origin)

    def _check_key(self, path: str, headers: Headers) -> Key | None:
        if self.keys is None or is_open(path) or (path == METRICS and self._limits.open_metrics):
            return None
        sent = _sent_key(headers)
        if not sent:
            raise KeyRefused("No API key was sent. Send it as 'Authorization: Bearer KEY'.")
        key = self.keys.find(sent)
        if key is None:
            raise KeyRefused("The API key is unknown.")
        return key


class _MoreHeaders:
    """Adds headers to a response, computed when it begins."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._makers: list[Callable[[], Mapping[str, str]]] = []

    def add(self, make: Callable[[], Mapping[str, str]]) -> None:
        self._makers.append(make)

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for make in self._makers:
                headers.update(make())
        await self._send(message)


def is_open(path: str) -> bool:
    """Return whether the path never needs a key."""
    return path in PROBES or path == PAGE or path.startswith(PAGE_FILES)


def _sent_key(headers: Headers) -> str:
    scheme, _, value = headers.get("authorization", "").partition(" ")
    return value.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "").strip()


def _preflight(headers: Headers) -> dict[str, str]:
    """Return what a page of an allowed origin may do."""
    found = {
        "Access-Control-Allow-Methods": "GET, POST, DELETE",
        "Access-Control-Allow-Headers": headers.get("access-control-request-headers", _CORS_HEADERS),
        "Access-Control-Max-Age": _CORS_MAX_AGE_S,
    }
    if headers.get("access-control-request-private-network") == "true":
        found["Access-Control-Allow-Private-Network"] = "true"
    return found
