"""Bodies under `/api`, read here and not by the framework: clients of Ollama send them without a content type."""

from __future__ import annotations

import json
from typing import TypeVar

from fastapi import Request

from server.dialects.ollama.schema import ModelBody, validate
from server.errors import InvalidRequest

M = TypeVar("M", bound=ModelBody)


async def read_body(request: Request, model: type[M]) -> M:
    """Return the body as `model`. Raises InvalidRequest, and RequestValidationError with the place."""
    try:
        written = json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        what = error.msg if isinstance(error, json.JSONDecodeError) else "it cannot be read"
        raise InvalidRequest(f"The request body is not valid JSON: {what}.") from None
    if not isinstance(written, dict):
        raise InvalidRequest("The request body must be a JSON object.")
    return validate(model, written)
