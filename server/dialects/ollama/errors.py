"""Bodies of errors under `/api`, a single text as in Ollama, and the errors of unsupported routes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from server.errors import APIError, InvalidRequest, ModelNotFound


class UnknownModel(ModelNotFound):
    """No served model has this name; worded as clients of Ollama expect."""

    def __init__(self, name: str, served: Sequence[str]) -> None:
        super().__init__(name, served)
        self.message = f"model '{name}' not found. Served here: {', '.join(served) or 'none'}."


class NotOffered(InvalidRequest):
    """A route of Ollama that changes the set of models; here only the configuration does."""

    code = "not_supported"

    def __init__(self, what: str, instead: str) -> None:
        super().__init__(f"This server does not {what} over HTTP. {instead}")


def encode_error(error: APIError) -> dict[str, Any]:
    return {"error": error.message}


def encode_error_line(error: APIError) -> bytes:
    """Return the error as the last line of a stream. Pure ASCII: the message may quote invalid Unicode."""
    return json.dumps(encode_error(error)).encode() + b"\n"
