"""OpenAI's error body: used by its dialects, and by every path that no dialect claims."""

from __future__ import annotations

from typing import Any

from server.errors import APIError


def encode_error(error: APIError) -> dict[str, Any]:
    return {"error": {"message": error.message, "type": error.type, "param": error.param, "code": error.code}}
