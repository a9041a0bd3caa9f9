"""Types of arguments by a tool's schema, and values of these types from the text that a model wrote.

Nothing is coerced: a text stays as written, and a value that does not match its type is passed on as text, or as the
JSON that it was.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote

from server.text.calls.values import Number, read_exact, read_literal

Schema = Mapping[str, Any]
ANY: frozenset[str] = frozenset({"string", "number", "integer", "boolean", "null", "object", "array"})
_NAMES = {str: "string", bool: "boolean", int: "integer", float: "number", dict: "object", list: "array"}
_MOST_NESTED = 100
_MEMBERS = ("properties", "patternProperties", "additionalProperties")
_INTEGER = re.compile(r"-?[0-9]+(?:\.0*)?")


def type_of(value: object) -> str:
    """Return a value's type name in JSON Schema; `integer` for a number that is one."""
    if isinstance(value, Number):
        return "integer" if _INTEGER.fullmatch(value) else "number"
    return _NAMES.get(type(value), "null")


def types_of(schema: object, root: Schema) -> frozenset[str]:
    """Return the types that a value may have; `root` holds the definitions. A number may be an integer."""
    found = _types_of(schema, root, {}, 0)
    return ANY if found is None else found


def _types_of(
    schema: object, root: Schema, known: dict[int, frozenset[str] | None], depth: int
) -> frozenset[str] | None:
    """Return the types; None for a schema that is being visited, which adds no constraint.

    `known`: the types of schemas by identity, so that none is visited twice, even if it contains itself.
    """
    if not isinstance(schema, Mapping) or depth == _MOST_NESTED:
        return ANY
    if id(schema) in known:
        return known[id(schema)]
    found, known[id(schema)] = ANY, None
    if "type" in schema:
        named = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        found &= {name for name in named if isinstance(name, str)} | ({"integer"} if "number" in named else set())
    if isinstance(schema.get("enum"), list):
        found &= {type_of(value) for value in schema["enum"]}
    if "const" in schema:
        found &= {type_of(schema["const"])}
    for several in ("anyOf", "oneOf"):
        if isinstance(schema.get(several), list):
            told = [_types_of(each, root, known, depth + 1) for each in schema[several]]
            found &= frozenset().union(*(each for each in told if each is not None)) if any(told) else ANY
    joined = [_types_of(each, root, known, depth + 1) for each in _joined(schema, root)]
    found = found.intersection(*(each for each in joined if each is not None))
    known[id(schema)] = None if found == ANY and None in joined else found
    return known[id(schema)]


def resolve(ref: str, root: Schema) -> Any:
    """Return the target of a reference within the schema; None if it has none."""
    found: Any = root
    for written in ref.removeprefix("#").strip("/").split("/") if ref.strip("#/") else ():
        name = unquote(written).replace("~1", "/").replace("~0", "~")
        if isinstance(found, list):
            found = found[int(name)] if name.isdecimal() and int(name) < len(found) else None
        else:
            found = found.get(name) if isinstance(found, Mapping) else None
    return found if ref.startswith("#") else None


def required_of(schema: Schema) -> frozenset[str]:
    """Return the required names of an object, by its schema and everything that refers to."""
    found: set[str] = set()
    seen: set[int] = set()
    left: list[object] = [schema]
    while left:
        each = left.pop()
        if not isinstance(each, Mapping) or id(each) in seen:
            continue
        seen.add(id(each))
        names = each.get("required")
        found |= {name for name in names if isinstance(name, str)} if isinstance(names, list) else set()
        left += _joined(each, schema)
    return frozenset(found)


def types_of_argument(key: str, schema: Schema) -> frozenset[str]:
    """Return the types that the argument `key` may have; `schema` is that of all arguments."""
    found = _types_of_member(key, schema, schema, {}, 0)
    return ANY if found is None else found


def _types_of_member(
    key: str, schema: object, root: Schema, seen: dict[int, frozenset[str] | None], depth: int
) -> frozenset[str] | None:
    """Return the types of one member of an object; None if the schema does not constrain it."""
    if not isinstance(schema, Mapping) or depth == _MOST_NESTED:
        return None
    if id(schema) in seen:
        return seen[id(schema)]
    seen[id(schema)] = None
    said = [_types_of_member(key, each, root, seen, depth + 1) for each in _joined(schema, root)]
    for several in ("anyOf", "oneOf"):
        options = schema[several] if isinstance(schema.get(several), list) else ()
        told = [_types_of_member(key, each, root, seen, depth + 1) for each in options]
        said.append(frozenset().union(*(each for each in told if each is not None)) if any(told) else None)
    properties, patterns, others = (schema.get(name) for name in _MEMBERS)
    if isinstance(properties, Mapping) and key in properties:
        said.append(types_of(properties[key], root))
    elif isinstance(patterns, Mapping) and patterns:  # whichever of a client's expressions it may match
        said.append(frozenset().union(*(types_of(each, root) for each in patterns.values())))
    elif isinstance(others, Mapping):
        said.append(types_of(others, root))
    known = [each for each in said if each is not None]
    found = seen[id(schema)] = frozenset.intersection(*known) if known else None
    return found


def _joined(schema: Mapping[str, Any], root: Schema) -> Iterator[object]:
    """Yield the schemas that apply together with this one."""
    if isinstance(schema.get("$ref"), str):
        yield resolve(schema["$ref"], root)
    yield from schema["allOf"] if isinstance(schema.get("allOf"), list) else ()


def value_of_text(text: str, types: frozenset[str]) -> Any:
    """Return the value that `text`, written without a type, stands for.

    If both a text and another type are allowed, JSON of the other type becomes that type. Python's words and quotes are
    accepted if no text is allowed.
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
    """Return a value written as JSON, or its text `raw` if only a text is allowed; null stays null."""
    fits = type_of(value) in types or value is None or "string" not in types
    return value if fits else raw
