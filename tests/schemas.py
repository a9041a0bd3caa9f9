"""Random schemas, and validation of values against them."""

from __future__ import annotations

import random
import re
from typing import Any

FLAT = ("string", "pattern", "integer", "boolean", "null", "enum")
NESTED = ("anyOf", "object", "array")


def random_schema(source: random.Random, depth: int = 0) -> dict[str, Any]:
    """Return a schema bounded in every part: a random model writes digits without end."""
    kind = source.choice((*FLAT, *NESTED) if depth < 3 else FLAT)
    if kind == "enum":
        return {"enum": source.sample(["red", "green", 3, None, True, 'a"b\\c'], 3)}
    if kind == "anyOf":
        return {"anyOf": [random_schema(source, depth + 1) for _ in range(source.randint(1, 3))]}
    if kind == "object":
        names = source.sample(["a", "b", "long name", "ü", "properties"], source.randint(0, 3))
        properties = {name: random_schema(source, depth + 1) for name in names}
        required = [name for name in names if source.random() < 0.7]
        return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    if kind == "array":
        return {"type": "array", "items": random_schema(source, depth + 1), "minItems": 1, "maxItems": 2}
    if kind == "pattern":
        return {"type": "string", "pattern": source.choice(["^[a-c]{2,4}$", "^(yes|no)$", "^\\d{4}-\\d{2}$"])}
    bounds = {"string": {"maxLength": 3}, "integer": {"minimum": -99, "maximum": 9999}}
    return {"type": kind, **bounds.get(kind, {})}


def follows(value: Any, schema: dict[str, Any]) -> bool:
    """Return whether a value follows a schema of random_schema."""
    if "enum" in schema:
        return any(value == each and type(value) is type(each) for each in schema["enum"])
    if "anyOf" in schema:
        return any(follows(value, each) for each in schema["anyOf"])
    types = {"string": str, "integer": int, "boolean": bool, "null": type(None), "object": dict, "array": list}
    return type(value) is types[schema["type"]] and _is_within(value, schema)


def _is_within(value: Any, schema: dict[str, Any]) -> bool:
    """Return whether a value of the right type has valid contents."""
    if isinstance(value, dict):
        parts = schema["properties"]
        return set(schema["required"]) <= value.keys() and all(
            name in parts and follows(part, parts[name]) for name, part in value.items()
        )
    if isinstance(value, list):
        return 1 <= len(value) <= 2 and all(follows(part, schema["items"]) for part in value)
    if isinstance(value, str):
        return bool(re.search(schema.get("pattern", ""), value)) and len(value) <= schema.get("maxLength", len(value))
    return schema["type"] != "integer" or bool(schema["minimum"] <= value <= schema["maximum"])
