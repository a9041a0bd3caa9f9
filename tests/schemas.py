"""Schemas drawn at random, and whether a value follows one."""

from __future__ import annotations

import random
from typing import Any


def random_schema(source: random.Random, depth: int = 0) -> dict[str, Any]:
    kind = source.choice(["string", "integer", "boolean", "null", "enum", "object", "array"][: 7 if depth < 3 else 5])
    if kind == "enum":
        return {"enum": source.sample(["red", "green", 3, None, True, 'a"b\\c'], 3)}
    if kind == "object":
        names = source.sample(["a", "b", "long name", "ü", "properties"], source.randint(0, 3))
        properties = {name: random_schema(source, depth + 1) for name in names}
        return {"type": "object", "properties": properties, "required": names, "additionalProperties": False}
    if kind == "array":
        return {"type": "array", "items": random_schema(source, depth + 1), "minItems": 1, "maxItems": 2}
    # bounded: a model of no great mind writes digits for ever
    bounds = {"string": {"maxLength": 3}, "integer": {"minimum": -99, "maximum": 9999}}
    return {"type": kind, **bounds.get(kind, {})}


def follows(value: Any, schema: dict[str, Any]) -> bool:
    """Whether a value is one of random_schema's."""
    if "enum" in schema:
        return value in schema["enum"]
    if schema["type"] == "object":
        parts = schema["properties"]
        return (
            isinstance(value, dict) and value.keys() == parts.keys() and all(follows(value[k], parts[k]) for k in parts)
        )
    if schema["type"] == "array":
        return isinstance(value, list) and 1 <= len(value) <= 2 and all(follows(v, schema["items"]) for v in value)
    types = {"string": str, "integer": int, "boolean": bool, "null": type(None)}
    return isinstance(value, types[schema["type"]])
