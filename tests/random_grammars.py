"""Random grammars, most of them hostile, each with a check of its answers.

Deep, wide, recursive, huge and contradictory grammars, costly patterns, and ordinary ones among them.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from tests.schemas import random_schema

Fields = Mapping[str, Any]


@dataclass(frozen=True)
class Drawn:
    """A grammar as fields of a request. `is_right`: whether a finished answer follows it."""

    kind: str
    fields: Fields
    is_right: Callable[[str], bool]


def draw(source: random.Random) -> Drawn:
    """Return a random grammar."""
    kind = source.choice(list(_KINDS))
    return _KINDS[kind](kind, source)


# --- JSON schemas


def _is_json_of(schema: Any, text: str) -> bool:
    try:
        Draft202012Validator(schema).validate(json.loads(text))
    except (ValueError, ValidationError):
        return False
    return True


def _schema(kind: str, schema: dict[str, Any]) -> Drawn:
    return Drawn(kind, {"guided_json": schema}, lambda text: _is_json_of(schema, text))


def _ordinary(kind: str, source: random.Random) -> Drawn:
    return _schema(kind, random_schema(source))


_PATTERNS = (
    "^[a-c]{2,4}$", "^(yes|no)$", r"^\d{4}-\d{2}$", "^[^x]*$", "x", "(a|b)*c", "^(a{1,9}){1,9}$", "[a-z]{30}", "^$",
    r"^\S+@\S+\.\w+$", "^(?:a|aa)+$", "^.{0,400}$", r"\w+\s\w+", "a.{12}b",
)  # fmt: skip
_FORMATS = ("date", "time", "date-time", "ipv4", "uuid", "email", "hostname")


def _keywords(source: random.Random, depth: int) -> dict[str, Any]:
    """Return random keywords of all kinds, regardless of whether they fit together."""
    schema: dict[str, Any] = {}
    for _ in range(source.randint(0, 4)):
        name = source.choice(list(_VALUES))
        schema[name] = _VALUES[name](source, depth)
    return schema


def _inner(source: random.Random, depth: int) -> Any:
    if depth > 4:
        return source.choice(({}, True, False, {"type": "integer"}))
    return source.choice((random_schema(source), _keywords(source, depth + 1)))


def _inners(source: random.Random, depth: int) -> list[Any]:
    return [_inner(source, depth) for _ in range(source.randint(0, 3))]


_VALUES: Mapping[str, Callable[[random.Random, int], Any]] = {
    "type": lambda source, _: source.choice(
        ["string", "integer", "number", "object", "array", "boolean", "null", ["string", "null"], ["integer", "array"]]
    ),
    "properties": lambda source, depth: {name: _inner(source, depth) for name in source.sample("abcd", 2)},
    "required": lambda source, _: source.sample("abcde", source.randint(0, 2)),
    "additionalProperties": lambda source, depth: source.choice([True, False, _inner(source, depth)]),
    "items": _inner,
    "prefixItems": _inners,
    "minItems": lambda source, _: source.randint(0, 5),
    "maxItems": lambda source, _: source.choice([0, 1, 4, 100]),
    "minLength": lambda source, _: source.choice([0, 1, 5, 60]),
    "maxLength": lambda source, _: source.choice([0, 1, 4, 100]),
    "pattern": lambda source, _: source.choice(_PATTERNS),
    "format": lambda source, _: source.choice(_FORMATS),
    "minimum": lambda source, _: source.choice([-5, 0, 7, 1.5, 10**9]),
    "maximum": lambda source, _: source.choice([-5, 0, 7, 2.25, 10**12]),
    "exclusiveMinimum": lambda source, _: source.choice([-5, 0, 7]),
    "exclusiveMaximum": lambda source, _: source.choice([-4, 1, 8]),
    "multipleOf": lambda source, _: source.choice([1, 2, 5, 0.5]),
    "enum": lambda source, _: source.sample([1, "a", None, True, [1], {"a": 1}, "long " * 20, 2.5], 3),
    "const": lambda source, _: source.choice([1, "a", None, {"b": [1]}, "ü\n"]),
    "anyOf": lambda source, depth: [_inner(source, depth), *_inners(source, depth)],
    "oneOf": lambda source, depth: [_inner(source, depth), *_inners(source, depth)],
    "allOf": lambda source, depth: [_inner(source, depth), *_inners(source, depth)],
    "not": _inner,
    "if": _inner,
    "uniqueItems": lambda source, _: source.random() < 0.5,
    "minProperties": lambda source, _: source.randint(0, 3),
    "maxProperties": lambda source, _: source.randint(0, 3),
    "patternProperties": lambda source, depth: {"^a": _inner(source, depth)},
    "propertyNames": lambda source, depth: {"pattern": source.choice(_PATTERNS)},
    "dependentRequired": lambda source, _: {"a": ["b"]},
    "contains": _inner,
    "$ref": lambda source, _: source.choice(["#", "#/properties/a", "#/nowhere"]),
    "$defs": lambda source, depth: {"d": _inner(source, depth)},
    "title": lambda source, _: "x" * source.randint(0, 50),
    "x-unknown": lambda source, _: [1, 2],
}


def _mixed(kind: str, source: random.Random) -> Drawn:
    return _schema(kind, _keywords(source, 0))


def _chain(kind: str, source: random.Random) -> Drawn:
    length = source.choice([3, 50, 400, 1500, 3000])
    links: list[Callable[[Any], Any]] = [
        lambda ref: ref,
        lambda ref: {"allOf": [ref]},
        lambda ref: {"anyOf": [ref, {"type": "null"}]},
        lambda ref: {"type": "array", "items": ref, "minItems": 1, "maxItems": 1},
        lambda ref: {"type": "object", "properties": {"a": ref}, "additionalProperties": False},
    ]
    link = source.choice(links)
    definitions = {f"d{i}": link({"$ref": f"#/$defs/d{i + 1}"}) for i in range(length)}
    schema = {"$ref": "#/$defs/d0", "$defs": {**definitions, f"d{length}": random_schema(source)}}
    # the validator is recursive: for the longest chains the answer is not validated
    return Drawn(kind, {"guided_json": schema}, lambda text: length > 50 or _is_json_of(schema, text))


def _nested(kind: str, source: random.Random) -> Drawn:
    schema: Any = random_schema(source)
    for _ in range(source.choice([5, 20, 60])):
        schema = source.choice(
            [{"type": "array", "items": schema, "maxItems": 2}, {"anyOf": [schema, {"type": "null"}]}]
        )
    return _schema(kind, schema)


def _recursive(kind: str, source: random.Random) -> Drawn:
    tree = {
        "type": "object",
        "properties": {
            "v": random_schema(source),
            "l": {"anyOf": [{"$ref": "#"}, {"type": "null"}]},
            "c": {"type": "array", "items": {"$ref": "#"}, "maxItems": source.randint(0, 3)},
        },
        "required": source.sample(["v", "l", "c"], source.randint(0, 3)),
        "additionalProperties": False,
    }
    return _schema(kind, tree)


def _wide(kind: str, source: random.Random) -> Drawn:
    count = source.choice([20, 200, 900, 1400, 4000])
    names = [f"p{i}" for i in range(count)]
    required = names if source.random() < 0.5 else source.sample(names, 3)
    each = source.choice([{"type": "boolean"}, {"type": "string", "maxLength": 3}, {"enum": [1, 2]}])
    schema = {"type": "object", "properties": dict.fromkeys(names, each), "required": required}
    return _schema(kind, {**schema, "additionalProperties": False})


def _intersected(kind: str, source: random.Random) -> Drawn:
    count = source.choice([2, 3, 8, 24])
    parts = [
        {"pattern": source.choice(_PATTERNS) if source.random() < 0.5 else f"[a-z]{{{i + 2}}}"} for i in range(count)
    ]
    return _schema(kind, {"type": "string", "maxLength": 200, "allOf": parts})


def _long_enum(kind: str, source: random.Random) -> Drawn:
    values = [f"{'v' * source.randint(0, 9)}{i}" for i in range(source.choice([10, 1000, 9000]))]
    return _schema(kind, {"enum": values})


def _as_text(kind: str, source: random.Random) -> Drawn:
    depth = source.choice([1, 100, 200, 3000])
    text = source.choice(["[" * depth, '{"a":' * depth, "[" * depth + "]" * depth, '{"type": "null"', "NaN", "1e999"])
    return Drawn(kind, {"guided_json": text}, lambda text: False)


# --- others


def _regex(kind: str, source: random.Random) -> Drawn:
    atoms = ["a", "b", "[a-c]", "[0-9]", "x{2,5}", "(ab|c)", "y?", "z{0,3}", r"\.", "/", r"\-"]
    text = "".join(source.choice(atoms) for _ in range(source.randint(1, 8)))
    for _ in range(source.randint(0, 2)):
        text = f"({text}){source.choice(['{1,3}', '?', '{2}', ''])}"
    if source.random() < 0.3:
        text = source.choice(
            ["(a{1,1000}){1,1000}", "(.*a.{14})", "(x+x+)+y", "(?=a)b", "(", "a{99999}", r"\p{L}{1,90}"]
        )
        return Drawn(kind, {"guided_regex": text}, lambda written: _matches(text, written))
    return Drawn(kind, {"guided_regex": text}, lambda written: re.fullmatch(text, written) is not None)


def _matches(text: str, written: str) -> bool:
    """Return whether the text matches, for patterns that Python can evaluate quickly."""
    known = {"(a{1,1000}){1,1000}": "a+", "(.*a.{14})": r"(?s:.*a.{14})", "(x+x+)+y": "xx+y", "a{99999}": "a{99999}"}
    if text.startswith(r"\p"):
        return written.isalpha() and len(written) <= 90
    return text in known and re.fullmatch(known[text], written) is not None


def _choice(kind: str, source: random.Random) -> Drawn:
    count = source.choice([1, 3, 50, 2500, 20_000])
    texts = [
        source.choice(['yes "{}"', "né{}\n", "{}", "a long choice, {}", "\\{}", "🙂{}"]).format(i) for i in range(count)
    ]
    return Drawn(kind, {"guided_choice": texts}, lambda written: written in texts)


def _lark(kind: str, source: random.Random) -> Drawn:
    depth = source.choice([2, 30, 2000, 6000])
    chain = "start: r0\n" + "\n".join(f"r{i}: r{i + 1}" for i in range(depth)) + f'\nr{depth}: "a"'
    grammars: list[tuple[str, Callable[[str], bool]]] = [
        (chain, lambda written: written == "a"),
        ('start: "(" start ")" | "x"', lambda written: re.fullmatch(r"\(*x\)*", written) is not None
         and written.count("(") == written.count(")")),
        ('start: a\na: a a | "x" | ""', lambda written: set(written) <= {"x"}),
        ('start: (A | B)+\nA: /a{1,3}/\nB: "bb"', lambda written: re.fullmatch("(a|bb)+", written) is not None),
        ("start: T\nT: /[a-z]+/ & /.*q.*/ & ~/.*u.*/", lambda written: "q" in written and "u" not in written),
        ("start: T\nT: /a/ & /b/", lambda written: False),
        ('start: "x" (T | "y")\nT: /a+/ & /b+/', lambda written: False),
        ('start: %json {"type": "integer", "minimum": 3, "maximum": 5}', lambda written: written in ("3", "4", "5")),
        ('start: %json {"patternProperties": {"a": {}}}', lambda written: False),
        ('start: %json {"x-guidance": {"lenient": true}, "not": {}}', lambda written: False),
        ("start: nothing", lambda written: False),
        ('start: "a"{1,100000}', lambda written: set(written) == {"a"}),
        ("start: T\nT: " + " & ".join(f"/(.*[a-z]{{{i}}}.*)/" for i in range(9, 9 + source.choice([2, 5, 24]))),
         lambda written: re.search("[a-z]{9}", written) is not None),
    ]  # fmt: skip
    text, is_right = source.choice(grammars)
    return Drawn(kind, {"guided_grammar": text}, is_right)


_KINDS: Mapping[str, Callable[[str, random.Random], Drawn]] = {
    "ordinary": _ordinary,
    "mixed": _mixed,
    "chain": _chain,
    "nested": _nested,
    "recursive": _recursive,
    "wide": _wide,
    "intersected": _intersected,
    "long enum": _long_enum,
    "as text": _as_text,
    "regex": _regex,
    "choice": _choice,
    "lark": _lark,
}
