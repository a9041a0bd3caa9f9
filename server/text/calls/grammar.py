"""Grammars of calls in the model's own form, so that every call is valid for its tool by construction.

Builds llguidance's dialect of Lark from a form's syntax and the tools' schemas; compiles nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from server.text.calls.bare_grammar import BareValues
from server.text.calls.form import CallForm, Pair
from server.text.calls.lark import ANYTHING, INTEGER, NOT_JSON, NUMBER, SILENT, Rules, Spell, without
from server.text.calls.schemas import Schema, resolve, types_of
from server.text.grammar import GrammarError, GrammarSource, check_keywords
from server.text.parsers import harmony
from server.text.parsers.parts import Tools

_MOST_CALLS = 8
_MOST_NESTED = 8
_PLACE = re.compile(r"\{(index|nl|key|flag)\}")
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_NOT_WRAPPED = r"~\s*<!\[CDATA\[(?s:.*)"
_OF_PAIRS = frozenset({"type", "properties", "required", "additionalProperties", "$defs", "definitions", "$schema"})
_SHAPES: Mapping[str, type | tuple[type, ...]] = {
    "type": (str, list), "properties": Mapping, "$defs": Mapping, "definitions": Mapping, "required": list,
    "enum": list, "anyOf": list, "oneOf": list, "allOf": list, "pattern": str, "$ref": str,
    "minLength": int, "maxLength": int, "minItems": int, "maxItems": int,
}  # fmt: skip
_LISTS_OF_TEXTS = ("type", "required")
_KEY = re.compile(r"[^\s<>\"'&]+")


def grammar_of_calls(
    tools: Tools, form: CallForm, spell: Spell, *, only_one: bool, answer: GrammarSource | None = None
) -> GrammarSource:
    """Return the grammar of calls of these tools (OpenAI format) and nothing else, or of an `answer` in their place.

    Raises GrammarError for a schema that cannot be enforced.
    """
    rules = Rules(spell)
    calls = _calls(rules, form, [tool["function"] for tool in tools], only_one=only_one)
    section = rules.add("section", f"{rules.text(form.start)} {calls} {rules.text(form.end)}")
    again = "" if only_one or form.between is not None else f'("\\n"? {section}){{0,{_MOST_CALLS - 1}}}'
    called = f"/\\n{{0,2}}/ {section} {again}"
    return rules.source(called if answer is None else f"({called}) | {rules.embedded(answer)}")


def grammar_of_text(tools: Tools, form: CallForm, spell: Spell) -> GrammarSource:
    """Return the grammar of any text with calls in it: each call names one of these tools; strict ones are enforced.

    Raises GrammarError.
    """
    rules = Rules(spell)
    functions = [tool["function"] for tool in tools]
    known = [each if each.get("strict") else {"name": each["name"], "parameters": None} for each in functions]
    if not form.opening:
        return _text_or_calls(rules, form, known)
    mark = form.start or form.head
    calls = _calls(rules, form, known, only_one=False, is_begun=not form.start)
    free = rules.add("FREE", ANYTHING if rules.has_token(mark) else without(mark))
    lead = rules.up_to(mark)
    rest = rules.add("rest", f"{calls} {rules.text(form.end)}")
    if form.start and not form.end:  # text after it would be parsed as part of the call
        return rules.source(f"{free} | {lead} {rest} ({rules.text(mark)} {rest})*")
    return rules.source(f"({lead} {rest})* {free}")


def _text_or_calls(rules: Rules, form: CallForm, functions: Sequence[Mapping[str, Any]]) -> GrammarSource:
    """Return the grammar of a form without a mark: calls, or a text that contains nothing like one."""
    calls = _calls(rules, form, functions, only_one=False)
    begin = r"[{\[`]" if form.style == "object" else r"\["
    free = rules.add("FREE", rf"{ANYTHING} & ~/((?s:.*)\n)?[ \t]*{begin}(?s:.*)/")
    return rules.source(f"{free} | {calls}")


def harmony_grammar(
    tools: Tools,
    spell: Spell,
    *,
    must_call: bool,
    in_reasoning: bool = False,
    budget: int | None = None,
    answer: GrammarSource | None = None,
) -> GrammarSource:
    """Return the grammar of a complete gpt-oss answer, reasoning included, that ends with a call.

    Unless `must_call`, it may end with a message, which is an `answer` or any text. Arguments are enforced for strict
    tools, and with `must_call` for all. `budget`: tokens of the reasoning. Raises GrammarError.
    """
    rules = Rules(spell)
    any_text = rules.add("ANY", ANYTHING)
    limit = "" if budget is None else f"[max_tokens={budget + 1}]"
    reasoning = rules.add("thought", any_text if limit == "" else ANYTHING, limit)
    again = rules.text(f"{harmony.END}{harmony.START}assistant")
    analysis = rules.add("analysis", f"{rules.text(harmony.ANALYSIS)} {reasoning} {again}")
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
    final = any_text if answer is None else rules.embedded(answer)
    last = calls if must_call else [*calls, f"{rules.text(harmony.FINAL)} {final}"]
    begun = f"{reasoning} {again} " if in_reasoning else ""
    return rules.source(f"{begun}{before}{{0,{_MOST_CALLS}}} ({' | '.join(last)})")


def _calls(
    rules: Rules, form: CallForm, functions: Sequence[Mapping[str, Any]], *, only_one: bool, is_begun: bool = False
) -> str:
    """Return the grammar of a section between its tags; `is_begun`: the head of the first call precedes it."""
    call = rules.add("call", " | ".join(_call(rules, form, function) for function in functions))
    head = rules.text(form.head)
    more = ""
    if form.between is not None and not only_one:
        more = f"({rules.text(form.between)} {head} {call}){{0,{_MOST_CALLS - 1}}}"
    listed = ('"["', '"]"') if form.is_list else ("", "")
    first = "" if is_begun else f"{rules.text(form.before)} {listed[0]} {head}"
    return f"{first} {call} {more} {listed[1]} {rules.text(form.after)}"


def _call(rules: Rules, form: CallForm, function: Mapping[str, Any]) -> str:
    """Return the rule of a call after its head."""
    if form.style == "object":
        return rules.add("part", rules.json(_call_schema(form, function)))
    name = rules.text(function["name"])
    mid = _filled(rules, form.mid, {"index": "/[0-9]{1,3}/"})
    return rules.add("part", f"{name} {mid} {_arguments(rules, form, function)} {rules.text(form.tail)}")


def _arguments(rules: Rules, form: CallForm, function: Mapping[str, Any]) -> str:
    if form.style == "pairs":
        assert form.pair is not None
        return _pairs(rules, form.pair, function)
    if form.style == "bare":
        schema = _parameters(function)
        return BareValues(rules, form.quote, schema).value({"type": "object", **schema})
    if form.style == "python":
        return _keywords(rules, function)
    return rules.json(_parameters(function))


def _filled(rules: Rules, template: str, places: Mapping[str, str]) -> str:
    """Return the template with its texts spelled and its placeholders filled."""
    pieces = _PLACE.split(template)
    written = []
    for text, name in zip(pieces[::2], [*pieces[1::2], ""], strict=True):
        written.append(rules.text(text))
        if name:
            written.append(places.get(name, '"\\n"?'))  # any other placeholder may be a newline
    return rules.add("part", " ".join(filter(None, written)) or '""')


def _keywords(rules: Rules, function: Mapping[str, Any]) -> str:
    """Return keyword arguments in the order of the schema, the required ones first. Raises GrammarError."""
    if function.get("parameters", {}) is None:  # the tool's schema is not enforced
        value = rules.add("value", rules.json({}))
        pair = rules.add("pair", f'/[A-Za-z_][A-Za-z0-9_]*/ "=" {value}')
        return f'({pair} (", " {pair})*)?'
    schema = _parameters(function)
    _check_pairs(schema)
    properties, required = schema.get("properties") or {}, schema.get("required") or ()
    for key in properties:
        if not _WORD.fullmatch(key):
            raise GrammarError(f"the argument {key!r} has a name that this model's calls cannot have")
    written = {
        key: rules.add("pair", f"{json.dumps(key + '=')} {_json_value(rules, _object(each), schema)}")
        for key, each in properties.items()
    }
    behind, first = "", ""
    for key in reversed([key for key in properties if key not in required]):
        first = rules.add("first", f"{written[key]} {behind}" + (f" | {first}" if first else ""))
        behind = rules.add("rest", f'(", " {written[key]})? {behind}')
    fixed = [written[key] for key in properties if key in required]
    if fixed:
        return ' ", " '.join(fixed) + f" {behind}"
    return f"({first})?" if first else ""


def _object(schema: object) -> dict[str, Any]:
    return dict(schema) if isinstance(schema, Mapping) else {}


def _pairs(rules: Rules, pair: Pair, function: Mapping[str, Any]) -> str:
    """Return the sequence of arguments in the order of the schema. Raises GrammarError."""
    behind = _filled(rules, pair.between, {})
    flags = {True: json.dumps(pair.text_flag), False: f"({' | '.join(map(json.dumps, pair.other_flags))})"}
    if function.get("parameters", {}) is None:  # the tool's schema is not enforced
        free = {"key": rules.add("KEY", r"/[^\s<>\"'&]+/"), "flag": f"({flags[True]} | {flags[False]})"}
        return f"({_filled(rules, pair.head + pair.frame, free)} {rules.up_to(pair.tail)} {behind})*"
    schema = _parameters(function)
    _check_pairs(schema)
    required = schema.get("required") or ()
    values = _Values(rules, schema, pair)
    written = []
    for key, each in (schema.get("properties") or {}).items():
        if not _KEY.fullmatch(key):
            raise GrammarError(f"the argument {key!r} has a name that this model's calls cannot have")
        options = []
        for is_text, value in values.options(each):
            head = _filled(rules, pair.head + pair.frame, {"key": rules.text(key), "flag": flags[is_text]})
            options.append(f"{head} {value}")
        argument = rules.add("pair", f"({' | '.join(options)}) {behind}")
        written.append(argument if key in required else f"{argument}?")
    return " ".join(written)


class _Values:
    """Values of one tool's arguments, each with its closing tag: a text literally, everything else as JSON."""

    def __init__(self, rules: Rules, root: Schema, pair: Pair) -> None:
        self._rules, self._root, self._pair = rules, root, pair
        self._has_flag = bool(pair.text_flag)
        """A flag before the value tells a text from JSON."""

    def options(self, schema: Any, depth: int = 0, *, is_apart: bool = False) -> list[tuple[bool, str]]:
        """Return the allowed alternatives: (whether it is a text, its rule). Raises GrammarError.

        `is_apart`: a value may also be something other than a text, and a text may not look like it.
        """
        if depth == _MOST_NESTED:
            raise GrammarError("a choice of choices is nested too deeply, or is one of its own")
        if isinstance(schema, Mapping) and isinstance(schema.get("$ref"), str):
            schema = resolve(schema["$ref"], self._root)
        if not isinstance(schema, Mapping):
            schema = {}
        types = types_of(schema, self._root)
        if types == {"string"} and not schema.keys() & {"anyOf", "oneOf", "allOf", "$ref"}:
            return [(True, self._text(schema, is_apart=is_apart and not self._has_flag))]
        if "string" not in types:
            return [(False, self._json(schema))]
        if schema.keys() <= {"type"} | SILENT:  # several types, or any
            text = (True, self._rules.up_to(self._pair.tail))
            return [text, (False, self._json({"type": sorted(types - {"string"})}))] if self._has_flag else [text]
        choices = schema.get("anyOf") or schema.get("oneOf")
        if not isinstance(choices, list) or not schema.keys() <= {"anyOf", "oneOf"} | SILENT:
            raise GrammarError(
                "an argument that may be a text and something else is supported with 'type' or 'anyOf' alone"
            )
        is_apart = is_apart or any(types_of(choice, self._root) != {"string"} for choice in choices)
        return [option for choice in choices for option in self.options(choice, depth + 1, is_apart=is_apart)]

    def _text(self, schema: Schema, *, is_apart: bool) -> str:
        unlike = [NOT_JSON] if is_apart else []
        unlike += [_NOT_WRAPPED] if self._pair.cdata else []
        return self._rules.text_value(schema, self._pair.tail, frame=self._pair.frame, unlike=unlike)

    def _json(self, schema: Schema) -> str:
        line_end = "" if self._has_flag else '"\\n"?'
        return f"{_json_value(self._rules, schema, self._root)} {line_end} {self._rules.text(self._pair.tail)}"


def _json_value(rules: Rules, schema: Schema, root: Schema) -> str:
    bare = {key: value for key, value in schema.items() if key not in SILENT}
    if bare == {"type": "integer"}:
        return INTEGER
    if bare == {"type": "number"}:
        return NUMBER
    shared = {key: root[key] for key in ("$defs", "definitions") if key in root}
    return rules.add("json", rules.json({**shared, **schema}))


def _call_schema(form: CallForm, function: Mapping[str, Any]) -> dict[str, Any]:
    if form.named_key:
        properties = {function["name"]: _moved(_parameters(function), _pointer(function["name"]))}
    else:
        name, arguments = form.keys
        properties = {name: {"const": function["name"]}, arguments: _moved(_parameters(function), _pointer(arguments))}
    return {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}


def _pointer(key: str) -> str:
    """Return the pointer to the arguments' schema within the call's schema."""
    return "#/properties/" + key.replace("~", "~0").replace("/", "~1")


def _moved(schema: Any, place: str) -> Any:
    """Return the schema at another place: its references begin at the top."""
    if isinstance(schema, list):
        return [_moved(each, place) for each in schema]
    if not isinstance(schema, Mapping):
        return schema
    moved = {key: _moved(value, place) for key, value in schema.items()}
    if isinstance(schema.get("$ref"), str) and schema["$ref"].startswith("#"):
        moved["$ref"] = place + schema["$ref"][1:]
    return moved


def _parameters(function: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of a function's arguments. Raises GrammarError."""
    if function.get("parameters", {}) is None:  # the tool's schema is not enforced
        return {"type": "object"}
    schema = dict(function.get("parameters") or {"type": "object"})
    _check_shape(schema)
    return schema


def _check_shape(schema: object) -> None:
    """Raise GrammarError for a keyword with a value of the wrong type."""
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
    """Raise GrammarError for keywords that cannot be enforced on tagged or keyword arguments."""
    check_keywords(schema)
    unknown = schema.keys() - _OF_PAIRS - SILENT
    if unknown:
        raise GrammarError(f"the keyword {min(unknown)!r} is not supported of the arguments of this model's calls")
    for key in schema.get("required") or ():
        if not isinstance(key, str) or key not in (schema.get("properties") or {}):
            raise GrammarError(f"the argument {key!r} is required, and has no schema")
