"""The bodies of errors. Each dialect has its own, and the path of the request says whose is written.

Whatever answers with an error, from the connection up to the routes, writes its body here. Knows no dialect.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from server.errors import APIError

EncodeError = Callable[[APIError], Mapping[str, Any]]
"""The body of an error: an object of JSON."""


class ErrorBodies:
    """The error bodies of one application."""

    def __init__(
        self,
        default: EncodeError,
        by_prefix: Mapping[str, EncodeError] | None = None,
        id_headers: Mapping[str, str] | None = None,
    ) -> None:
        """`by_prefix`: for a path, and all below it, that has error bodies of its own; the longest one decides.

        `id_headers`: the header in which a path, and all below it, has the id of a request beside `X-Request-Id`.
        """
        self._default = default
        self._id_headers = dict(id_headers or {})
        self._by_prefix = sorted((by_prefix or {}).items(), key=lambda item: len(item[0]), reverse=True)

    def write(self, path: str, error: APIError) -> bytes:
        """The body for whoever asked for `path`. Pure ASCII: the message may quote what is no valid Unicode."""
        return json.dumps(self._encoder_of(path)(error)).encode()

    def id_header(self, path: str) -> str | None:
        """The further header with the id of a request for `path`; None where it has none."""
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
