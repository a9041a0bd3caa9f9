"""Types of arguments by a tool's schema, and values of these types from the text that a model wrote.

Nothing is turned into something else: where a text is wanted it stays as it was written, and what does not fit its type
is handed on as text, or as the JSON that it was.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from server.text.calls.values import Number, read_exact, read_literal

Schema = Mapping[str, Any]
ANY: frozenset[str] = frozenset({"string", "number", "integer", "boolean", "null", "object", "array"})
_NAMES = {str: "string", bool: "boolean", int: "integer", float: "number", dict: "object", list: "array"}
_MOST_NESTED = 8
_INTEGER = re.compile(r"-?[0-9]+(?:\.0*)?")


def type_of(value: object) -> str:
    """Return the name that JSON Schema has for the type of a value; `integer` where a number is one."""
    if isinstance(value, Number):
        return "integer" if _INTEGER.fullmatch(value) else "number"
    return _NAMES.get(type(value), "null")


def types_of(schema: object, root: Schema, depth: int = 0) -> frozenset[str]:
    """Return the types that a value may have; `root` has the definitions. A number may be an integer."""
    if not isinstance(schema, Mapping) or depth == _MOST_NESTED:
        return ANY
    found = ANY
    if "type" in schema:
        named = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        found &= {name for name in named if isinstance(name, str)} | ({"integer"} if "number" in named else set())
    if isinstance(schema.get("enum"), list):
        found &= {type_of(value) for value in schema["enum"]}
    if "const" in schema:
        found &= {type_of(schema["const"])}
    for several in ("anyOf", "oneOf"):
        if isinstance(schema.get(several), list):
            found &= frozenset().union(*(types_of(each, root, depth + 1) for each in schema[several]))
    for each in schema["allOf"] if isinstance(schema.get("allOf"), list) else ():
        found &= types_of(each, root, depth + 1)
    if isinstance(schema.get("$ref"), str):
        found &= types_of(resolve(schema["$ref"], root), root, depth + 1)
    return found


def resolve(ref: str, root: Schema) -> Any:
    """Return what a reference within the schema stands for; None where there is nothing."""
    found: Any = root
    for name in ref.removeprefix("#").strip("/").split("/"):
        found = found.get(name) if isinstance(found, Mapping) else None
    return found if ref.startswith("#") else None


def required_of(schema: Schema) -> frozenset[str]:
    """Return the names that an object has to have; none where `required` is no list of names."""
    names = schema.get("required")
    return frozenset(name for name in names if isinstance(name, str)) if isinstance(names, list) else frozenset()


def types_of_argument(key: str, schema: Schema) -> frozenset[str]:
    """Return the types that the argument `key` may have, where `schema` is that of all arguments."""
    properties = schema.get("properties")
    return types_of(properties.get(key) if isinstance(properties, Mapping) else None, schema)


def value_of_text(text: str, types: frozenset[str]) -> Any:
    """Return the value that `text`, which says nothing of its type, stands for.

    Where a text and something else may be, what is JSON of something else is that. Python's words and quotes are taken
    where no text may be.
    """
    if types == {"string"}:
        return text
    try:
        value = read_exact(text)
    except ValueError:
        value = _literal(text) if "string" not in types else text
    if isinstance(value, str) and not isinstance(value, Number):
        return text
    return value if type_of(value) in types else text


def _literal(text: str) -> Any:
    try:
        return read_literal(text)
    except ValueError:
        return text


def value_of_json(value: Any, raw: str, types: frozenset[str]) -> Any:
    """Return a value that was written as JSON, or as `raw`, its text, where only a text may be; null stays null."""
    fits = type_of(value) in types or value is None or "string" not in types
    return value if fits else raw
