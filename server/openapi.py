"""The published schema, `/openapi.json`: the framework's, without statuses never sent, with those of the gate."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI

from server.security.gate import is_open

_AT_THE_GATE = {
    "401": "No key was sent, or one that is not known, where keys are asked for",
    "403": "The `Host` or `Origin` is not one that this server answers to, or the key may not do this",
    "408": "The body did not come in time",
    "429": "The key has used up what it may use in a minute",
    "431": "More headers, or longer ones, than are read",
    "503": "The server has as many requests as it can hold",
}
"""Statuses that the gate returns before any route."""


class PublishedAPI(FastAPI):
    """An application with a corrected schema."""

    def openapi(self) -> dict[str, Any]:
        """Return the schema; built once."""
        if self.openapi_schema is None:
            _correct(super().openapi())
        assert self.openapi_schema is not None
        return self.openapi_schema


def _correct(schema: dict[str, Any]) -> None:
    """Remove status 422, which is a 400 here; move the models of streamed events and some bodies to the others."""
    models = schema["components"]["schemas"]
    for path, operation in ((path, each) for path, methods in schema["paths"].items() for each in methods.values()):
        operation["responses"].pop("422", None)
        for status in _gate_statuses(path, operation):
            operation["responses"].setdefault(status, _failure(_AT_THE_GATE[status]))
        for holder in (operation.get("requestBody", {}), *operation["responses"].values()):
            for media in holder.get("content", {}).values():
                for form in ("schema", "itemSchema"):
                    for name, model in media.get(form, {}).pop("$defs", {}).items():
                        assert models.setdefault(name, model) == model, f"two models are called {name}"
    for name in ("HTTPValidationError", "ValidationError"):
        models.pop(name, None)


def _gate_statuses(path: str, operation: dict[str, Any]) -> Iterator[str]:
    yield from ("403", "431")
    if not is_open(path):
        yield from ("401", "429")
    if "requestBody" in operation:
        yield from ("408", "503")


def _failure(description: str) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorBody"}}}
    return {"description": description, "content": content}
