"""Grammar of values as Gemma 4 writes them, `{city:<|"|>Paris<|"|>,days:[1,2]}`: JSON with bare keys and custom quotes.

Builds the rules for what a schema allows. Required properties come first; only the schema's properties are allowed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from server.text.calls.lark import INTEGER, NUMBER, SILENT, Rules
from server.text.calls.schemas import Schema, resolve
from server.text.grammar import GrammarError

_KEY = re.compile(r"[A-Za-z0-9_]+")
_ELSEWHERE = frozenset({"$defs", "definitions", "$schema", "additionalProperties"})
_OF_TEXT = frozenset({"minLength", "maxLength", "pattern"})
_OF_NUMBERS = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"})
_OF_ARRAYS = frozenset({"items", "minItems", "maxItems"})
_OF_OBJECTS = frozenset({"properties", "required"})
_TYPES: Mapping[str, frozenset[str]] = {
    "string": _OF_TEXT,
    "integer": _OF_NUMBERS,
    "number": _OF_NUMBERS,
    "array": _OF_ARRAYS,
    "object": _OF_OBJECTS,
    "boolean": frozenset(),
    "null": frozenset(),
}
_KNOWN = frozenset({"type", "enum", "const", "anyOf", "oneOf", "$ref"}).union(*_TYPES.values())


class BareValues:
    """The rules of one schema's values. `quote` encloses a text."""

    def __init__(self, rules: Rules, quote: str, root: Schema) -> None:
        self._rules, self._quote, self._root = rules, quote, root
        self._referred: dict[str, str] = {}
        self._anything = ""

    def value(self, schema: object) -> str:
        """Return the name of the schema's rule. Raises GrammarError."""
        if not isinstance(schema, Mapping):
            schema = {}
        unknown = schema.keys() - _KNOWN - SILENT - _ELSEWHERE
        if unknown:
            raise GrammarError(f"the keyword {min(unknown)!r} is not supported in this model's calls")
        if "$ref" in schema:
            return self._refer(schema["$ref"])
        if "const" in schema or "enum" in schema:
            values = [schema["const"]] if "const" in schema else schema["enum"]
            return self._either(self._literal(value) for value in values)
        options = schema.get("anyOf") or schema.get("oneOf")
        if options:
            return self._either(map(self.value, options))
        types = schema.get("type", _guess(schema))
        if isinstance(types, list):
            return self._either(self._of_type(schema, each) for each in types)
        return self._any() if types is None else self._of_type(schema, types)

    def _of_type(self, schema: Schema, name: object) -> str:
        if not isinstance(name, str) or name not in _TYPES:
            raise GrammarError(f"there is no type {name!r}")
        if name == "string":
            said = {key: schema[key] for key in schema.keys() & _OF_TEXT}
            return self._rules.add("value", f"{self._mark()} {self._rules.text_value(said, self._quote)}")
        if name == "array":
            return self._array(schema)
        if name == "object":
            return self._object(schema)
        bounds = {key: schema[key] for key in schema.keys() & _TYPES[name]}
        if not bounds and name in ("integer", "number"):
            return self._rules.add("value", INTEGER if name == "integer" else NUMBER)
        return self._rules.add("value", self._rules.json({"type": name, **bounds}))

    def _array(self, schema: Schema) -> str:
        item = self.value(schema["items"]) if "items" in schema else self._any()
        least, most = schema.get("minItems", 0), schema.get("maxItems")
        if most == 0:
            return self._rules.add("value", '"[" "]"')
        more = f'("," {item}){{{max(least - 1, 0)},{"" if most is None else most - 1}}}'
        items = f"{item} {more}" if least else f"({item} {more})?"
        return self._rules.add("value", f'"[" {items} "]"')

    def _object(self, schema: Schema) -> str:
        properties = schema.get("properties")
        if properties is None:
            return self._any_object()
        required = [key for key in schema.get("required") or () if key in properties]
        if len(required) < len(schema.get("required") or ()):
            raise GrammarError("what is required needs a schema")
        given = {key: self._property(key, value) for key, value in properties.items()}
        rest = self._listed([given[key] for key in properties if key not in required])
        if required:
            first = ' "," '.join(given[key] for key in required)
            return self._rules.add("value", f'"{{" {first} {rest[0]} "}}"')
        return self._rules.add("value", f'"{{" ({rest[1]})? "}}"' if properties else '"{" "}"')

    def _listed(self, rules: Sequence[str]) -> tuple[str, str]:
        """Return rules for an optional sequence: one that follows other members, and one that begins the list."""
        behind, first = "", ""
        for rule in reversed(rules):
            first = self._rules.add("first", f"{rule} {behind}" + (f" | {first}" if first else ""))
            behind = self._rules.add("rest", f'("," {rule})? {behind}')
        return behind, first

    def _property(self, key: str, schema: object) -> str:
        if not _KEY.fullmatch(key):
            raise GrammarError(f"the argument {key!r} has a name that this model's calls cannot have")
        return self._rules.add("property", f"{json.dumps(key + ':')} {self.value(schema)}")

    def _literal(self, value: Any) -> str:
        if isinstance(value, str):
            return f"{self._mark()} {self._rules.text_value({'const': value}, self._quote)}"
        if isinstance(value, list):
            items = ' "," '.join(map(self._literal, value))
            return f'"[" {items} "]"'
        if isinstance(value, dict):
            pairs = (f"{json.dumps(key + ':')} {self._literal(each)}" for key, each in value.items())
            return '"{" ' + ' "," '.join(pairs) + ' "}"'
        return json.dumps(json.dumps(value))

    def _refer(self, ref: str) -> str:
        if ref not in self._referred:
            name = self._referred[ref] = self._rules.reserve("value")
            found = resolve(ref, self._root)
            if found is None:
                raise GrammarError(f"there is nothing at {ref!r}")
            self._rules.define(name, self.value(found))
        return self._referred[ref]

    def _any(self) -> str:
        if not self._anything:
            name = self._anything = self._rules.reserve("value")
            text = f"{self._mark()} {self._rules.up_to(self._quote)}"
            array = f'"[" ({name} ("," {name})*)? "]"'
            self._rules.define(name, f'{text} | {NUMBER} | "true" | "false" | "null" | {array} | {self._any_object()}')
        return self._anything

    def _any_object(self) -> str:
        key = self._rules.add("KEY", "/[A-Za-z0-9_]+/")
        pair = self._rules.reserve("property")
        self._rules.define(pair, f'{key} ":" {self._any()}')
        return self._rules.add("value", f'"{{" ({pair} ("," {pair})*)? "}}"')

    def _mark(self) -> str:
        return self._rules.text(self._quote)

    def _either(self, rules: Iterable[str]) -> str:
        options = list(rules)
        if not options:
            raise GrammarError("a choice needs something to choose from")
        return self._rules.add("value", " | ".join(options))


def _guess(schema: Schema) -> str | None:
    """Return the type that a schema implies without stating it."""
    return next((name for name, keys in _TYPES.items() if schema.keys() & keys), None)
