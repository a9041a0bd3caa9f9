"""A public API: its routes, and the format of errors below its paths."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from fastapi import APIRouter

from server.dialects import openai_errors
from server.dialects.parts import ServerParts
from server.error_bodies import EncodeError, ErrorBodies


@dataclass(frozen=True, slots=True)
class Dialect:
    """One public API. Without prefixes, its errors have OpenAI's format."""

    build_router: Callable[[ServerParts], APIRouter]
    prefixes: tuple[str, ...] = ()
    """Paths whose errors, for known routes and unknown ones below them, have this dialect's format."""
    encode_error: EncodeError = openai_errors.encode_error
    id_header: str | None = None
    """Additional header with the request's id, on every answer below these paths."""
    takes_unlabelled: bool = False
    """Whether a body below these paths may lack the JSON content type if it does not come from a browser."""
    takes_files: tuple[str, ...] = ()
    """Paths of uploads: their bodies are not JSON, may be larger than others, and are read by the route."""


def collect_errors(dialects: Iterable[Dialect]) -> ErrorBodies:
    """Return the error bodies of all dialects. Raises ValueError if a path is invalid or claimed twice."""
    found: dict[str, EncodeError] = {}
    id_headers: dict[str, str] = {}
    for dialect in dialects:
        for prefix in dialect.prefixes:
            if not prefix.startswith("/") or prefix.endswith("/") or prefix in found:
                raise ValueError(f"{prefix!r} is claimed twice, or is no path without a slash at its end")
            found[prefix] = dialect.encode_error
            if dialect.id_header is not None:
                id_headers[prefix] = dialect.id_header
    return ErrorBodies(openai_errors.encode_error, found, id_headers)
