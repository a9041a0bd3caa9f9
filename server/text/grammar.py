"""Sources of grammars that constrain an answer: JSON schemas, regular expressions, choices, Lark.

Translates each into llguidance's dialect of Lark, and refuses what llguidance would accept and not enforce. Compiles
nothing and imports no library: `server.grammars` compiles.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from server.json_text import WrittenNumber, inexact_number, is_exact_integer, read_json

MOST_CHARS = 200_000
JSON_OPTIONS = {"whitespace_flexible": True, "whitespace_pattern": r"( |\n {0,16})?"}
"""One space, or a newline and its indent: otherwise an undecided model could write white space without end."""
_MOST_NESTED = 200
_UNSOUND = frozenset({"patternProperties"})
"""Keywords that llguidance 1.9 accepts silently and compiles wrongly (its issue 265)."""
_OPTIONS_KEY = "x-guidance"
_LAX_OPTIONS = frozenset({"lenient", "coerce_one_of"})
"""Schema options that make llguidance skip keywords."""
_NAMED = frozenset({"properties", "$defs", "definitions", "dependentSchemas"})
"""Keywords with names as keys, not keywords."""
_VALUES = frozenset({"const", "enum", "default", "examples"})
_BOUNDS = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"})
_LEAST_TOO_LARGE = 1 << 63
_NO_NUMBERS = frozenset({"default", "examples"})
"""Keywords with numbers that constrain nothing."""
_JSON = json.JSONDecoder(parse_float=WrittenNumber)
_EMBEDDED = re.compile(r"%json\s*")
_RESTRICTED = re.compile(r"^[ \t]*(_?[A-Z][_A-Z0-9-]*)[^\n:]*:[^\n]*(?:\n[ \t]*\|[^\n]*)*?[&~]", re.MULTILINE)
"""A terminal's definition that contains the operator of an intersection or a negation."""
_START = re.compile(r"^[ \t]*[!?]*start\b", re.MULTILINE)
_MOST_RESTRICTED = 32


class GrammarError(ValueError):
    """The grammar cannot be honoured; the message names the keyword or the place."""


@dataclass(frozen=True, slots=True)
class GrammarSource:
    """Grammar of a request. `json_schema`: the schema as JSON; `regex`; `lark`."""

    kind: Literal["json_schema", "regex", "lark"]
    text: str
    is_ours: bool = False
    """The text was built here, from schemas that are already checked."""
    parts: tuple[str, ...] = ()
    """Grammars of parts of it, in Lark, each of which must allow something: with an unsatisfiable part, the whole could
    reach a point at which nothing may follow.
    """

    @classmethod
    def of_schema(cls, schema: Mapping[str, Any] | bool) -> GrammarSource:
        return cls("json_schema", json.dumps(schema, ensure_ascii=False))

    @classmethod
    def of_choices(cls, choices: Iterable[str]) -> GrammarSource:
        """Build one terminal for all choices: as rules, thousands of choices exceed llguidance's limits."""
        return cls("lark", "start: CHOICE\nCHOICE: " + " | ".join(map(json.dumps, choices)), is_ours=True)

    def to_lark(self, *, is_led: bool = False) -> tuple[str, ...]:
        """Return the grammar in llguidance's dialect of Lark, followed by those of its parts that may allow nothing.

        `is_led`: newlines may precede it, as after reasoning. Raises GrammarError.
        """
        if len(self.text) > MOST_CHARS:
            raise GrammarError(f"it has {len(self.text)} characters; at most {MOST_CHARS} can be compiled")
        if self.kind == "lark":
            if self.is_ours:
                return (self.text, *self.parts)
            _check_embedded(self.text)
            return (self.text, *_restricted_terminals(self.text))
        if self.kind == "regex":
            body = f"/{as_regex(self.text)}/"
        else:
            body = "%json " + json.dumps(_checked(self.text), ensure_ascii=False)
        return (f"start: /[\\n ]{{0,2}}/ body\nbody: {body}" if is_led else f"start: {body}",)


ANY_OBJECT = GrammarSource.of_schema({"type": "object"})
"""Meaning of `json_object`."""


def _checked(text: str) -> Any:
    try:
        schema = read_json(text)
    except ValueError as error:
        raise GrammarError(f"the schema is not JSON ({error})") from None
    if not isinstance(schema, dict):
        raise GrammarError("a schema must be an object")
    check_keywords(schema)
    return {**schema, _OPTIONS_KEY: JSON_OPTIONS}


def _check_embedded(lark: str) -> None:
    """Raise GrammarError for a schema within a client's Lark that would not be honoured."""
    for found in _EMBEDDED.finditer(lark):
        try:
            schema, _ = _JSON.raw_decode(lark, found.end())
        except RecursionError:
            raise GrammarError("a schema is nested too deeply") from None
        except ValueError:
            continue  # inside a string, for example; otherwise llguidance names the place
        number = inexact_number(schema)
        if number is not None:
            raise inexact(number)
        check_keywords(schema)
        options = schema.get(_OPTIONS_KEY) if isinstance(schema, Mapping) else None
        if isinstance(options, Mapping) and _LAX_OPTIONS & options.keys():
            raise GrammarError(f"the option {min(_LAX_OPTIONS & options.keys())!r} is not supported: it skips keywords")


def _restricted_terminals(lark: str) -> Iterator[str]:
    """Yield the grammar restarted at each terminal that an intersection or a negation may leave empty."""
    names = [found[1] for found in _RESTRICTED.finditer(lark)]
    if len(names) > _MOST_RESTRICTED:
        raise GrammarError(f"it has {len(names)} terminals with '&' or '~'; at most {_MOST_RESTRICTED} are supported")
    rest = _START.sub("the-former-start", lark)
    for name in names:
        yield f"start: {name}\n{rest}"


def as_regex(text: str) -> str:
    """Return a regular expression escaped for use between slashes."""
    return re.sub(r"\\.|/|\n", lambda found: {"/": r"\/", "\n": r"\n"}.get(found[0], found[0]), text, flags=re.DOTALL)


def check_keywords(schema: Any) -> None:
    """Raise GrammarError for what llguidance accepts and does not honour, and for a schema nested too deeply."""
    left: list[tuple[Any, tuple[str, ...]]] = [(schema, ())]
    while left:
        value, place = left.pop()
        if len(place) > _MOST_NESTED:
            raise GrammarError("the schema is nested too deeply")
        if isinstance(value, int | float) and not isinstance(value, bool):
            _check_number(value, is_bound=bool(place) and place[-1] in _BOUNDS)
        left += [(each, (*place, name)) for name, each in _parts(value, place)]


def _parts(schema: Any, place: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """Yield (name, value) of each possible subschema. Raises GrammarError."""
    if isinstance(schema, list):
        yield from ((str(position), value) for position, value in enumerate(schema))
    if not isinstance(schema, Mapping):
        return
    for key in _UNSOUND & schema.keys():
        raise GrammarError(f"the keyword {key!r} is not supported (at {'/' + '/'.join(place) if place else 'the top'})")
    for key, value in schema.items():
        if key in _NAMED and isinstance(value, Mapping):
            yield from ((f"{key}/{name}", each) for name, each in value.items())
        elif key in _VALUES:
            _check_integers(value if key not in _NO_NUMBERS else None)
        else:
            yield key, value


def _check_integers(value: Any) -> None:
    """Raise GrammarError for an integer in a value that llguidance, which computes in doubles, would change."""
    left = [value]
    while left:
        each = left.pop()
        if isinstance(each, int) and not isinstance(each, bool):
            _check_number(each)
        left += each.values() if isinstance(each, Mapping) else each if isinstance(each, list) else ()


def _check_number(number: float, *, is_bound: bool = False) -> None:
    """Raise GrammarError if llguidance would enforce another number: it uses doubles, and 64-bit bounds."""
    if is_bound:
        is_right = -_LEAST_TOO_LARGE <= number < _LEAST_TOO_LARGE and (
            number == int(float(number)) or number == _LEAST_TOO_LARGE - 1
        )
        if not is_right and (isinstance(number, int) or number.is_integer()):
            raise inexact(str(number))
    elif isinstance(number, int) and not is_exact_integer(number):
        raise inexact(str(number))


def inexact(number: str) -> GrammarError:
    """Return the error for a number in a schema that cannot be represented as written."""
    shown = number if len(number) <= 40 else f"{number[:37]}..."
    return GrammarError(f"the number {shown} of a schema cannot be held exactly: it has too many digits")


def explain(error: str) -> str:
    """Return llguidance's error without its position in a grammar the client never saw, and without internals."""
    if error.startswith("panic:"):
        return "the grammar compiler failed on it"
    line = " ".join(error.split())
    return re.sub(r"^at \d+\(\d+\): |( 1)? \| (start|body|%llguidance).*$", "", line)[:300]
