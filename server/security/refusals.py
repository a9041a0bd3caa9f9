"""Errors for requests that the gate refuses."""

from __future__ import annotations

import math

from server.errors import APIError, InvalidRequest


class KeyRefused(InvalidRequest):
    """No key, or an unknown one. The message never quotes what was sent."""

    status = 401
    code = "invalid_api_key"

    @property
    def headers(self) -> dict[str, str]:
        return {"WWW-Authenticate": 'Bearer realm="pippin"'}


class KeyRevoked(KeyRefused):
    """The key was valid when the request arrived, and has since been removed from the keys file."""

    def __init__(self) -> None:
        super().__init__("The API key has been revoked.")


class AdminRefused(InvalidRequest):
    """The key does not allow loading and unloading models."""

    status = 403
    code = "admin_key_required"

    def __init__(self) -> None:
        super().__init__("This API key cannot load or unload models; use one created with --admin.")


class HostRefused(InvalidRequest):
    """The `Host` header does not name this server: a foreign page may have caused the request."""

    status = 403
    code = "host_not_allowed"

    def __init__(self, host: str) -> None:
        super().__init__(
            f"This server does not serve the host {_quoted(host)}. To allow it, add it to security.allowed_hosts."
        )


class OriginRefused(InvalidRequest):
    """The request comes from a page of another origin."""

    status = 403
    code = "origin_not_allowed"

    def __init__(self, origin: str) -> None:
        super().__init__(
            f"Pages of {_quoted(origin)} may not use this server. To allow them, add it to security.cors_origins "
            "(--security-cors-origins)."
        )


class HeadersTooLarge(InvalidRequest):
    """The headers exceed the limits on number or size."""

    status = 431
    code = "headers_too_large"


class EncodingRefused(InvalidRequest):
    """The body has an unsupported transfer encoding."""

    status = 501
    code = "unsupported_transfer_encoding"

    def __init__(self) -> None:
        super().__init__("The only supported transfer encoding is 'chunked'.")


class RequestTimeout(InvalidRequest):
    """The body did not arrive in time."""

    status = 408
    code = "request_timeout"

    def __init__(self, timeout_s: float) -> None:
        super().__init__(f"The request body did not arrive within {timeout_s:g} seconds.")

    @property
    def headers(self) -> dict[str, str]:
        return {"Connection": "close"}


class RateLimited(APIError):
    """A key has reached its limit for a minute. `what` is `requests` or `tokens`."""

    status = 429
    code = "rate_limit_exceeded"

    def __init__(self, what: str, per_minute: int, wait_s: float, num_tokens: int | None = None) -> None:
        """`num_tokens`: prompt and output that the request may need."""
        self.retry_after_s = max(1, math.ceil(wait_s))
        needed = "" if num_tokens is None else f" This request may need {num_tokens}."
        super().__init__(
            f"Rate limit reached: {per_minute} {what} per minute.{needed} Please try again in {self.retry_after_s} s."
        )
        self.type = what

    @property
    def headers(self) -> dict[str, str]:
        return {"Retry-After": str(self.retry_after_s)}


class TooManyBodies(APIError):
    """The bodies of requests in progress have reached the limit in bytes."""

    status = 503
    code = "too_many_bodies"

    def __init__(self) -> None:
        super().__init__("The bodies of all requests in progress are too large together; try again later.")

    @property
    def headers(self) -> dict[str, str]:
        return {"Retry-After": "1"}


class TooManyConnections(APIError):
    """The limit of open connections is reached; this connection is one of the few reserved for probes."""

    status = 503
    code = "too_many_connections"

    def __init__(self) -> None:
        super().__init__("Too many connections are open; try again later.")

    @property
    def headers(self) -> dict[str, str]:
        return {"Retry-After": "1", "Connection": "close"}


def _quoted(text: str) -> str:
    return repr(text if len(text) <= 100 else text[:100] + "…")
