"""Arguments as the type that the schema says, from what the model wrote."""

from __future__ import annotations

from typing import Any

import pytest

from server.text.calls.schemas import ANY, resolve, type_of, types_of, value_of_json, value_of_text
from server.text.calls.values import Number

ROOT: dict[str, Any] = {
    "$defs": {"place": {"type": "object"}, "loop": {"$ref": "#/$defs/loop"}},
}


@pytest.mark.parametrize(
    ("schema", "types"),
    [
        ({"type": "integer"}, {"integer"}),
        ({"type": "number"}, {"number", "integer"}),
        ({"allOf": [{"type": "number"}, {"type": "integer"}]}, {"integer"}),
        ({"type": ["string", "null"]}, {"string", "null"}),
        ({"enum": [1, "a", None]}, {"integer", "string", "null"}),
        ({"const": True}, {"boolean"}),
        ({"anyOf": [{"type": "array"}, {"type": "object"}]}, {"array", "object"}),
        ({"allOf": [{"type": ["string", "null"]}, {"type": "string"}]}, {"string"}),
        ({"$ref": "#/$defs/place"}, {"object"}),
    ],
)
def test_the_types_of_a_schema(schema: object, types: set[str]) -> None:
    assert types_of(schema, ROOT) == types


@pytest.mark.parametrize("schema", [{}, True, None, {"$ref": "#/$defs/loop"}, {"$ref": "elsewhere"}])
def test_what_says_nothing_of_types(schema: object) -> None:
    assert types_of(schema, ROOT) == ANY


@pytest.mark.parametrize(
    ("text", "types", "value"),
    [
        # where a text is wanted it stays as it was written
        *[(text, "string", text) for text in ("5", " a \n", "NULL", "0x10", '"a"', "{}", "true", "", "\ta")],
        # what can be what is wanted is that
        ("5", "integer", Number("5")),
        (" 5\n", "integer", Number("5")),
        ("1234567890123456789012345678901234567890", "integer", Number("1234567890123456789012345678901234567890")),
        ("1.0", "integer", Number("1.0")),
        ("1e400", "number", Number("1e400")),
        ("true", "boolean", True),
        ("True", "boolean", True),
        ("null", "null", None),
        ("None", "null integer", None),
        ("[1, 2,]", "array", [Number("1"), Number("2")]),
        ("['a', None]", "array", ["a", None]),
        ("{'a': 1}", "object", {"a": Number("1")}),
        # and what cannot stays a text
        *[(text, "integer", text) for text in ("five", "1.5", "1,000", "0x10", "1e3", "inf", "NaN", "+5", "")],
        *[(text, "boolean", text) for text in ("yes", "1", "TRUE")],
        *[(text, "array", text) for text in ("[1, 2", "1", "[" * 10_000)],
        ("{'a': nope}", "object", "{'a': nope}"),
        ("5", "boolean null", "5"),
        # where a text may be, JSON of something else that may be is that, and nothing else is
        ("5", "string integer", Number("5")),
        ("null", "string null", None),
        *[(text, "string null", text) for text in ("None", "NULL", "5", "true", '"null"')],
        ("['a']", "string array", "['a']"),
        # where anything may be, JSON is what it says
        ("5", "", Number("5")),
        ("007", "", "007"),
        ("True", "", "True"),
    ],
)
def test_what_a_bare_text_is(text: str, types: str, value: Any) -> None:
    found = value_of_text(text, frozenset(types.split()) if types else ANY)
    assert (found, type_of(found)) == (value, type_of(value))


@pytest.mark.parametrize(
    ("value", "raw", "types", "found"),
    [
        (Number("5"), "5", "string", "5"),
        (Number("1e5"), "1e5", "string", "1e5"),
        ({"a": Number("1")}, '{"a":1}', "string", '{"a":1}'),
        (True, "true", "string", "true"),
        (None, "null", "string", None),
        ("5", '"5"', "integer", "5"),
        (Number("5"), "5", "string integer", Number("5")),
        ("a", '"a"', "string", "a"),
        (Number("5"), "5", "boolean", Number("5")),
    ],
)
def test_what_a_json_value_is(value: Any, raw: str, types: str, found: Any) -> None:
    assert value_of_json(value, raw, frozenset(types.split())) == found
    assert value_of_json(value, raw, ANY) == value


def test_references_within_a_schema() -> None:
    assert resolve("#/$defs/place", ROOT) == {"type": "object"}
    assert resolve("#/$defs/none", ROOT) is None
    assert resolve("other#/$defs/place", ROOT) is None
