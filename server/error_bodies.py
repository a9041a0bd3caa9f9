"""The bodies of errors. Each dialect has its own format; the path of the request selects it.

Every layer that answers with an error, from the connection to the routes, writes its body here. Independent of
dialects.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from server.errors import APIError

EncodeError = Callable[[APIError], Mapping[str, Any]]
"""Returns the body of an error: a JSON object."""


class ErrorBodies:
    """The error bodies of one application."""

    def __init__(
        self,
        default: EncodeError,
        by_prefix: Mapping[str, EncodeError] | None = None,
        id_headers: Mapping[str, str] | None = None,
    ) -> None:
        """`by_prefix`: encoders for a path and everything below it; the longest match applies.

        `id_headers`: header with the request id, in addition to `X-Request-Id`, for a path and everything below it.
        """
        self._default = default
        self._id_headers = dict(id_headers or {})
        self._by_prefix = sorted((by_prefix or {}).items(), key=lambda item: len(item[0]), reverse=True)

    def write(self, path: str, error: APIError) -> bytes:
        """Return the body for a request to `path`. Pure ASCII: the message may quote invalid Unicode."""
        return json.dumps(self._encoder_of(path)(error)).encode()

    def id_header(self, path: str) -> str | None:
        """Return the additional header with the request id for `path`, or None."""
        for prefix, header in self._id_headers.items():
            if _is_below(path, prefix):
                return header
        return None

    def _encoder_of(self, path: str) -> EncodeError:
        for prefix, encode in self._by_prefix:
            if _is_below(path, prefix):
                return encode
        return self._default


def _is_below(path: str, prefix: str) -> bool:
    return path == prefix or path.startswith(f"{prefix}/")
