"""Values with bare keys: which texts a schema allows, letter by letter."""

from __future__ import annotations

import json
from typing import Any

import pytest

from server.grammars.process import Grammar
from server.text.calls.bare_grammar import BareValues
from server.text.calls.lark import Rules
from server.text.grammar import GrammarError
from tests.compiling import COMPILER
from tests.server.text.test_grammar import END, allowed

Q = '<|"|>'
TREE = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "left": {"$ref": "#/$defs/tree"}},
    "required": ["name"],
    "$defs": {
        "tree": {"type": "object", "properties": {"name": {"const": "leaf"}, "left": {"$ref": "#/$defs/tree"}}},
    },
}


def grammar_of(schema: dict[str, Any]) -> Grammar:
    rules = Rules(lambda text: [json.dumps(text)])
    return COMPILER.compile(rules.source(BareValues(rules, Q, schema).value(schema)))


def is_allowed(schema: dict[str, Any], text: str) -> bool:
    state = grammar_of(schema).start()
    for token_id in text.encode():
        if token_id not in allowed(state):
            return False
        state.accept(token_id)
    return END in allowed(state)


@pytest.mark.parametrize(
    ("schema", "right", "wrong"),
    [
        ({"type": "string"}, [f"{Q}a b{Q}", f"{Q}{Q}"], ["a", '"a"', f"{Q}a", "1"]),
        ({"type": "string", "maxLength": 2}, [f"{Q} a{Q}"], [f"{Q}abc{Q}"]),
        ({"type": "string", "pattern": "^a+$"}, [f"{Q}aa{Q}"], [f"{Q}ab{Q}"]),
        ({"enum": ["a", 1, None, [1], {"b": "c"}]}, [f"{Q}a{Q}", "1", "null", "[1]", f"{{b:{Q}c{Q}}}"], ["2"]),
        ({"type": "integer"}, ["0", "-12"], ["1.5", "01", Q]),
        ({"type": "integer", "minimum": 3, "maximum": 5}, ["4"], ["2", "6"]),
        ({"type": ["boolean", "null"]}, ["true", "false", "null"], ["0"]),
        ({"type": "array", "items": {"type": "integer"}}, ["[]", "[1]", "[1,2]"], ["[,]", "[true]"]),
        ({"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 2}, ["[true]"], ["[]"]),
        ({"type": "array", "maxItems": 0}, ["[]"], ["[1]"]),
        ({"type": "array"}, [f"[1,{Q}a{Q},{{b:[]}}]"], ["[a]"]),
        ({"properties": {"a": {}, "b": {}}}, ["{}", "{a:1}", "{b:1}", "{a:1,b:2}"], ["{b:1,a:2}", "{c:1}", "{a:1,}"]),
        ({"properties": {"a": {}, "b": {}}, "required": ["b"]}, ["{b:1}", "{b:1,a:2}"], ["{}", "{a:1}"]),
        ({"type": "object"}, ["{}", "{any:{thing:1}}"], ["{1 :1}"]),
        ({"anyOf": [{"type": "null"}, {"type": "string"}]}, ["null", f"{Q}null{Q}"], ["1"]),
        (TREE, [f"{{name:{Q}x{Q}}}", f"{{name:{Q}x{Q},left:{{left:{{name:{Q}leaf{Q}}}}}}}"], ["{}"]),
        ({}, ["1", "null", f"{Q}a{Q}", "[{}]"], ["a", "nul"]),
    ],
)  # fmt: skip
def test_what_a_schema_allows(schema: dict[str, Any], right: list[str], wrong: list[str]) -> None:
    assert [text for text in right if not is_allowed(schema, text)] == []
    assert [text for text in wrong if is_allowed(schema, text)] == []


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"uniqueItems": True}, "uniqueItems"),
        ({"type": "date"}, "date"),
        ({"$ref": "#/nowhere"}, "nowhere"),
        ({"properties": {"a-b": {}}}, "a-b"),
        ({"enum": []}, "something to choose"),
        ({"const": Q}, "cannot be in one"),
        ({"properties": {"a": {}}, "required": ["b"]}, "needs a schema"),
        ({"type": "string", "maxLength": 10**6}, "100000"),
    ],
)
def test_what_it_cannot_be_held_to(schema: dict[str, Any], said: str) -> None:
    with pytest.raises(GrammarError, match=said):
        grammar_of(schema)
