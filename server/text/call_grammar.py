"""Calls as a grammar: what a model has to write, in its own form, so that a call is one of the tools' by construction.

Builds llguidance's dialect of Lark out of a format's syntax and the tools' schemas; compiles nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from server.text.bare_values import BareValues
from server.text.grammar import GrammarError, GrammarSource, check_keywords
from server.text.lark import ANYTHING, INTEGER, NUMBER, SILENT, Rules, Spell, without
from server.text.parsers import harmony
from server.text.parsers.parts import CallSyntax, ChatFormat, Tools
from server.text.parsers.schemas import Schema, resolve, types_of

_MOST_CALLS = 8
_MOST_NESTED = 8
_PLACE = re.compile(r"\{(object|name|arguments|index|nl|key|flag|value)\}")
_OF_PAIRS = frozenset({"type", "properties", "required", "additionalProperties", "$defs", "definitions", "$schema"})
_SHAPES: Mapping[str, type | tuple[type, ...]] = {
    "type": (str, list), "properties": Mapping, "$defs": Mapping, "definitions": Mapping, "required": list,
    "enum": list, "anyOf": list, "oneOf": list, "allOf": list, "pattern": str, "$ref": str,
    "minLength": int, "maxLength": int, "minItems": int, "maxItems": int,
}  # fmt: skip
_LISTS_OF_TEXTS = ("type", "required")
_KEY = re.compile(r"[^\s<>\"'&]+")


def grammar_of_calls(tools: Tools, marks: ChatFormat, spell: Spell, *, only_one: bool) -> GrammarSource | None:
    """Calls of these tools (in OpenAI's form) and nothing else; None for a model whose form is not known.

    Raises GrammarError for a schema that cannot be held to.
    """
    syntax = marks.syntax
    if syntax is None or not marks.tool_start:
        return None
    rules = Rules(spell)
    calls = _calls(rules, syntax, [tool["function"] for tool in tools], only_one=only_one)
    section = rules.add("section", f"{rules.text(marks.tool_start)} {calls} {rules.text(marks.tool_end or '')}")
    again = "" if only_one or syntax.between is not None else f'("\\n"? {section}){{0,{_MOST_CALLS - 1}}}'
    return rules.source(f"/\\n{{0,2}}/ {section} {again}")


def grammar_of_text(tools: Tools, marks: ChatFormat, spell: Spell) -> GrammarSource | None:
    """Any text, and in it calls: behind an opening tag a call of these, its arguments right if it is strict.

    None for a model whose form is not known. Raises GrammarError.
    """
    syntax = marks.syntax
    if syntax is None or not marks.tool_start:
        return None
    rules = Rules(spell)
    functions = [tool["function"] for tool in tools]
    known = [each if each.get("strict") else {"name": each["name"], "parameters": None} for each in functions]
    calls = _calls(rules, syntax, known, only_one=False)
    free = rules.add("FREE", ANYTHING if rules.has_token(marks.tool_start) else without(marks.tool_start))
    lead = rules.up_to(marks.tool_start)
    rest = rules.add("rest", f"{calls} {rules.text(marks.tool_end or '')}")
    if not marks.tool_end:  # what follows would be read as part of the call
        return rules.source(f"{free} | {lead} {rest} ({rules.text(marks.tool_start)} {rest})*")
    return rules.source(f"({lead} {rest})* {free}")


def harmony_grammar(
    tools: Tools, spell: Spell, *, must_call: bool, in_thought: bool = False, budget: int | None = None
) -> GrammarSource:
    """A whole answer of gpt-oss, thoughts and all, that ends with a call; or, unless it `must_call`, with any message.

    Of the arguments those of strict tools are held to, and all that must be called. `budget`: tokens of a thought.
    Raises GrammarError.
    """
    rules = Rules(spell)
    any_text = rules.add("ANY", ANYTHING)
    limit = "" if budget is None else f"[max_tokens={budget + 1}]"
    thought = rules.add("thought", any_text if limit == "" else ANYTHING, limit)
    again = rules.text(f"{harmony.END}{harmony.START}assistant")
    analysis = rules.add("analysis", f"{rules.text(harmony.ANALYSIS)} {thought} {again}")
    comment = rules.add("comment", f"{rules.text(harmony.COMMENTARY + harmony.MESSAGE)} {any_text} {again}")
    before = analysis if must_call else f"({analysis} | {comment})"
    calls = []
    for tool in tools:
        function = tool["function"]
        schema = _parameters(function) if must_call or function.get("strict") else {"type": "object"}
        header = rules.text(
            f"{harmony.COMMENTARY} to=functions.{function['name']} {harmony.CONSTRAIN}json{harmony.MESSAGE}"
        )
        calls.append(rules.add("call", f"{header} {rules.json(schema)}"))
    last = calls if must_call else [*calls, f"{rules.text(harmony.FINAL)} {any_text}"]
    begun = f"{thought} {again} " if in_thought else ""
    return rules.source(f"{begun}{before}{{0,{_MOST_CALLS}}} ({' | '.join(last)})")


def _calls(rules: Rules, syntax: CallSyntax, functions: Sequence[Mapping[str, Any]], *, only_one: bool) -> str:
    """What stands between the tags."""
    call = rules.add("call", " | ".join(_call(rules, syntax, function) for function in functions))
    more = ""
    if syntax.between is not None and not only_one:
        more = f"({rules.text(syntax.between)} {call}){{0,{_MOST_CALLS - 1}}}"
    return f"{rules.text(syntax.before)} {call} {more} {rules.text(syntax.after)}"


def _call(rules: Rules, syntax: CallSyntax, function: Mapping[str, Any]) -> str:
    def place(name: str) -> str:
        if name == "object":
            return rules.json(_call_schema(function))
        if name == "name":
            return rules.text(function["name"])
        if syntax.quote:
            schema = _parameters(function)
            return BareValues(rules, syntax.quote, schema).value({"type": "object", **schema})
        if syntax.pair is None:
            return rules.json(_parameters(function))
        return _pairs(rules, syntax.pair, function)

    return _filled(rules, syntax.call, place)


def _filled(rules: Rules, template: str, place: Callable[[str], str]) -> str:
    """The template with its texts spelled and its places filled."""
    pieces = _PLACE.split(template)
    written = []
    for text, name in zip(pieces[::2], [*pieces[1::2], ""], strict=True):
        written.append(rules.text(text))
        if name == "nl":
            written.append('"\\n"?')
        elif name == "index":
            written.append("/[0-9]{1,3}/")
        elif name:
            written.append(place(name))
    return rules.add("part", " ".join(filter(None, written)) or '""')


def _pairs(rules: Rules, pair: str, function: Mapping[str, Any]) -> str:
    """The arguments one after another, in the order of the schema. Raises GrammarError."""
    lead, _, rest = pair.partition("{value}")
    end = rest[: rest.index(">") + 1]
    if function.get("parameters", {}) is None:  # a tool that is not held to
        free = {"key": rules.add("KEY", r"/[^\s<>\"'&]+/"), "flag": '("true" | "false")'}
        return f"({_filled(rules, lead, free.__getitem__)} {rules.up_to(end)} {_filled(rules, rest[len(end) :], str)})*"
    schema = _parameters(function)
    _check_pairs(schema)
    required = schema.get("required") or ()
    values = _Values(rules, schema, end, has_flag="{flag}" in lead)
    written = []
    for key, each in (schema.get("properties") or {}).items():
        if not _KEY.fullmatch(key):
            raise GrammarError(f"the argument {key!r} has a name that this model's calls cannot have")
        options = []
        for is_text, value in values.options(each):
            places = {"key": rules.text(key), "flag": json.dumps("true" if is_text else "false")}
            options.append(f"{_filled(rules, lead, places.__getitem__)} {value}")
        argument = rules.add("pair", f"({' | '.join(options)}) {_filled(rules, rest[len(end) :], str)}")
        written.append(argument if key in required else f"{argument}?")
    return " ".join(written)


class _Values:
    """Values of one tool's arguments, each with the tag behind it: a text as it stands, all else as JSON.

    `has_flag`: which of the two it is stands before it, and it is taken to the letter.
    """

    def __init__(self, rules: Rules, root: Schema, end: str, *, has_flag: bool) -> None:
        self._rules, self._root, self._end, self._has_flag = rules, root, end, has_flag

    def options(self, schema: Any, depth: int = 0, *, is_apart: bool = False) -> list[tuple[bool, str]]:
        """(whether it is a text, what it may be), any of these. Raises GrammarError.

        `is_apart`: a value may be something else than a text, and a text may not look like it.
        """
        if depth == _MOST_NESTED:
            raise GrammarError("a choice of choices is nested too deeply, or is one of its own")
        if isinstance(schema, Mapping) and isinstance(schema.get("$ref"), str):
            schema = resolve(schema["$ref"], self._root)
        if not isinstance(schema, Mapping):
            schema = {}
        types = types_of(schema, self._root)
        if types == {"string"} and not schema.keys() & {"anyOf", "oneOf", "allOf", "$ref"}:
            is_apart = is_apart and not self._has_flag
            return [(True, self._rules.text_value(schema, self._end, is_quoted=self._has_flag, is_apart=is_apart))]
        if "string" not in types:
            return [(False, self._json(schema))]
        if schema.keys() <= {"type"} | SILENT:  # of many types, or of any
            text = (True, self._rules.up_to(self._end))
            return [text, (False, self._json({"type": sorted(types - {"string"})}))] if self._has_flag else [text]
        choices = schema.get("anyOf") or schema.get("oneOf")
        if not isinstance(choices, list) or not schema.keys() <= {"anyOf", "oneOf"} | SILENT:
            raise GrammarError(
                "an argument that may be a text and something else is supported with 'type' or 'anyOf' alone"
            )
        is_apart = is_apart or any(types_of(choice, self._root) != {"string"} for choice in choices)
        return [option for choice in choices for option in self.options(choice, depth + 1, is_apart=is_apart)]

    def _json(self, schema: Schema) -> str:
        line_end = "" if self._has_flag else '"\\n"?'
        return f"{_json_value(self._rules, schema, self._root)} {line_end} {self._rules.text(self._end)}"


def _json_value(rules: Rules, schema: Schema, root: Schema) -> str:
    bare = {key: value for key, value in schema.items() if key not in SILENT}
    if bare == {"type": "integer"}:
        return INTEGER
    if bare == {"type": "number"}:
        return NUMBER
    shared = {key: root[key] for key in ("$defs", "definitions") if key in root}
    return rules.add("json", rules.json({**shared, **schema}))


def _call_schema(function: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"name": {"const": function["name"]}, "arguments": _moved(_parameters(function))},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def _moved(schema: Any) -> Any:
    """The same schema as that of a call's arguments: its references begin at the top."""
    if isinstance(schema, list):
        return [_moved(each) for each in schema]
    if not isinstance(schema, Mapping):
        return schema
    moved = {key: _moved(value) for key, value in schema.items()}
    if isinstance(schema.get("$ref"), str) and schema["$ref"].startswith("#"):
        moved["$ref"] = "#/properties/arguments" + schema["$ref"][1:]
    return moved


def _parameters(function: Mapping[str, Any]) -> dict[str, Any]:
    """Raises GrammarError."""
    schema = dict(function.get("parameters") or {"type": "object"})
    _check_shape(schema)
    return schema


def _check_shape(schema: object) -> None:
    """Raise GrammarError for a keyword whose value is none of a schema's."""
    if isinstance(schema, list):
        for each in schema:
            _check_shape(each)
    if not isinstance(schema, Mapping):
        return
    for keyword, kind in _SHAPES.items():
        value = schema.get(keyword)
        is_right = isinstance(value, kind) and not (isinstance(value, bool) or (isinstance(value, int) and value < 0))
        if is_right and keyword in _LISTS_OF_TEXTS and isinstance(value, list):
            is_right = all(isinstance(each, str) for each in value)
        if keyword in schema and not is_right:
            raise GrammarError(f"the keyword {keyword!r} has a value that makes no schema")
    for key, value in schema.items():
        if key in ("properties", "$defs", "definitions"):
            _check_shape(list(value.values()))
        elif key in ("items", "anyOf", "oneOf", "allOf", "not", "additionalProperties"):
            _check_shape(value)


def _check_pairs(schema: Schema) -> None:
    """Raise GrammarError for what a row of arguments cannot be held to."""
    check_keywords(schema)
    unknown = schema.keys() - _OF_PAIRS - SILENT
    if unknown:
        raise GrammarError(f"the keyword {min(unknown)!r} is not supported of the arguments of this model's calls")
    for key in schema.get("required") or ():
        if not isinstance(key, str) or key not in (schema.get("properties") or {}):
            raise GrammarError(f"the argument {key!r} is required, and has no schema")
