"""A public API: its routes, and how the errors below its paths are written."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from fastapi import APIRouter

from server.dialects import openai_errors
from server.dialects.parts import ServerParts
from server.error_bodies import EncodeError, ErrorBodies


@dataclass(frozen=True, slots=True)
class Dialect:
    """One public API. Without paths of its own its errors are OpenAI's."""

    build_router: Callable[[ServerParts], APIRouter]
    prefixes: tuple[str, ...] = ()
    """The paths, each with all that is below it, where errors are this dialect's: known routes or not."""
    encode_error: EncodeError = openai_errors.encode_error
    id_header: str | None = None
    """A header that has the request's id, too, on every answer below these paths."""
    takes_unlabelled: bool = False
    """Whether a body below its paths need not be labelled as JSON where no browser sends it."""
    takes_files: tuple[str, ...] = ()
    """The paths of uploads: bodies there are no JSON, may be larger than others, and are read by the route."""


def collect_errors(dialects: Iterable[Dialect]) -> ErrorBodies:
    """The error bodies of all of them. Raises ValueError where a path is not one, or claimed twice."""
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
