"""A route that builds its published schema only when the schema is requested."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi.routing import APIRoute

from server.dialects.openai_schema import Responses


class PublishedRoute(APIRoute):
    """Route that builds the models of its `responses` late: answers do not need them, and they take half of a start."""

    def __init__(
        self, path: str, endpoint: Callable[..., Any], *, responses: Responses | None = None, **options: Any
    ) -> None:
        super().__init__(path, endpoint, **options)
        self.responses = responses or {}
        del self.response_fields

    def __getattr__(self, name: str) -> Any:
        if name != "response_fields":
            raise AttributeError(name)
        whole = APIRoute(self.path, self.endpoint, name=self.name, methods=self.methods, responses=self.responses)
        self.response_fields = whole.response_fields
        return self.response_fields
