"""The body of errors below `/api`, and what is refused there for good: one text, as Ollama has it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from server.errors import APIError, InvalidRequest, ModelNotFound


class UnknownModel(ModelNotFound):
    """No served model has this name, in words that clients of Ollama look for."""

    def __init__(self, name: str, served: Sequence[str]) -> None:
        super().__init__(name, served)
        self.message = f"model '{name}' not found. Served here: {', '.join(served) or 'none'}."


class NotOffered(InvalidRequest):
    """A route of Ollama's that changes which models there are; here the configuration alone does that."""

    code = "not_supported"

    def __init__(self, what: str, instead: str) -> None:
        super().__init__(f"This server does not {what} over HTTP. {instead}")


def encode_error(error: APIError) -> dict[str, Any]:
    return {"error": error.message}


def encode_error_line(error: APIError) -> bytes:
    """The error as the last line of a stream. Pure ASCII: the message may quote what is no valid Unicode."""
    return json.dumps(encode_error(error)).encode() + b"\n"
