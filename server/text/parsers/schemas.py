"""What a JSON schema says of a value's type, and arguments made to fit where a parser could not tell.

Models that write an argument as bare text, `5` or `five` alike, leave its type to the schema.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from server.json_text import read_json

Schema = Mapping[str, Any]
_ANY: frozenset[str] = frozenset({"string", "number", "boolean", "null", "object", "array"})
_NAMES = {str: "string", bool: "boolean", int: "number", float: "number", dict: "object", list: "array"}
_MOST_NESTED = 8


def type_of(value: object) -> str:
    """JSON's name; a number is a number."""
    return _NAMES.get(type(value), "null")


def types_of(schema: object, root: Schema, depth: int = 0) -> frozenset[str]:
    """The types that a value may have; `root` has the definitions."""
    if not isinstance(schema, Mapping) or depth == _MOST_NESTED:
        return _ANY
    found = _ANY
    if "type" in schema:
        named = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        found &= {"number" if name == "integer" else name for name in named if isinstance(name, str)}
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
    """What a reference within the schema stands for; None where there is nothing."""
    found: Any = root
    for name in ref.removeprefix("#").strip("/").split("/"):
        found = found.get(name) if isinstance(found, Mapping) else None
    return found if ref.startswith("#") else None


def required_of(schema: Schema) -> frozenset[str]:
    """The names that an object has to have; nothing where `required` is no list of names."""
    names = schema.get("required")
    return frozenset(name for name in names if isinstance(name, str)) if isinstance(names, list) else frozenset()


def fit(arguments: Mapping[str, Any], schema: Schema) -> dict[str, Any]:
    """Texts that can be read as something else that is wanted, read as JSON; and what was read though a text is wanted.

    Where a text and something else are, what can be something else is. Where anything is, it stays what it is.
    """
    properties = schema.get("properties")
    known = properties if isinstance(properties, Mapping) else {}
    return {key: _fit(value, types_of(known.get(key), schema)) for key, value in arguments.items()}


def _fit(value: Any, types: frozenset[str]) -> Any:
    if isinstance(value, str) and types != _ANY and types != {"string"}:
        try:
            parsed = read_json(value)
        except ValueError:
            return value
        return parsed if type_of(parsed) in types - {"string"} else value
    if type_of(value) in types or "string" not in types:
        return value
    return json.dumps(value, ensure_ascii=False)
