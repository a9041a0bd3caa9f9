"""Tools and calls in the OpenAI dialects: checks of parameters, and arguments in the form that templates read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from server.json_text import read_json


def decode_arguments(given: str | dict[str, Any]) -> str | dict[str, Any]:
    """Return the arguments as an object, as templates expect, or the string if it is not the JSON of an object."""
    if not isinstance(given, str):
        return given
    try:
        parsed = read_json(given or "{}")
    except ValueError:
        return given
    return parsed if isinstance(parsed, dict) else given


def check_parameters(value: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return the schema of an object. Raises ValueError."""
    if value is None:
        return None
    kind = value.get("type", "object")
    if kind != "object" and not (isinstance(kind, list) and "object" in kind):
        raise ValueError("the parameters' type must be 'object'")
    if value.get("properties") is None and "properties" in value:
        value = {**value, "properties": {}}
    if not isinstance(value.get("properties", {}), Mapping):
        raise ValueError("'properties' should be an object")
    return {**value, "type": "object"} if "type" in value else value
