"""Grammars that are costly or fatal to compile or to follow, as fields of a request. Each was an attack once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

Fields = Mapping[str, Any]


def chain(length: int, link: Any) -> dict[str, Any]:
    """Return a schema whose definitions refer to one another: `link(ref)` builds each except the last."""
    definitions = {f"d{i}": link({"$ref": f"#/$defs/d{i + 1}"}) for i in range(length - 1)}
    return {"$ref": "#/$defs/d0", "$defs": {**definitions, f"d{length - 1}": {"type": "string"}}}


def optional(count: int) -> dict[str, Any]:
    """Return an object with `count` properties, none of them required."""
    return {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(count)}}


def _tool(schema: Any) -> Fields:
    function = {"name": "f", "strict": True, "parameters": {"type": "object", "properties": {"a": schema}}}
    return {"tools": [{"type": "function", "function": function}]}


def _patterns(least: int, form: str) -> list[str]:
    return [form % length for length in range(least, least + 24)]


HOSTILE: Mapping[str, Fields] = {
    "references, 1,000 in a row": {"guided_json": chain(1000, lambda ref: ref)},
    "references, 4,000 in a row": {"guided_json": chain(4000, lambda ref: ref)},
    "allOf, 4,000 in a row": {"guided_json": chain(4000, lambda ref: {"allOf": [ref]})},
    "arrays, 3,000 deep": {"guided_json": chain(3000, lambda ref: {"type": "array", "items": ref})},
    "the same in a tool": _tool(chain(3000, lambda ref: {"type": "array", "items": ref})),
    "Lark rules, 5,000 in a row": {
        "guided_grammar": "start: r0\n" + "\n".join(f"r{i}: r{i + 1}" for i in range(5000)) + '\nr5000: "a"'
    },
    "24 patterns in allOf": {
        "guided_json": {"type": "string", "allOf": [{"pattern": each} for each in _patterns(10, "[a-z]{%d}")]}
    },
    "24 intersections of a terminal": {
        "guided_grammar": "start: T\nT: " + " & ".join(_patterns(10, "/(.*[a-z]{%d}.*)/"))
    },
    "5,000 optional properties": {"guided_json": optional(5000)},
    "brackets, 3,000 in a text": {"guided_json": "[" * 3000},
    "half a surrogate pair": {"guided_json": {"const": "\ud800"}},
    "a lax schema in Lark": {"guided_grammar": 'start: %json {"patternProperties": {"a": {"type": "integer"}}}'},
    "nothing is allowed": {"guided_grammar": "start: A\nA: /a/ & /b/"},
    "nothing is allowed later": {"guided_grammar": 'start: "x" A\nA: /a/ & /b/'},
}
HELD: Mapping[str, Fields] = {
    "2,100 choices": {"guided_choice": [f"c{i}" for i in range(2100)]},
    "600 optional properties": {"guided_json": optional(600)},
}
"""Large, but to be answered."""


def body_of(fields: Fields) -> str:
    """Return the JSON of a chat with these fields, including half surrogate pairs."""
    asked = {"messages": [{"role": "user", "content": "Who are you?"}], "max_tokens": 40, "temperature": 0}
    return json.dumps({**asked, **fields})
