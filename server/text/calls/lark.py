"""Builder of grammar rules in llguidance's dialect of Lark, with constrained texts.

Handles JSON schemas of texts; independent of tools and models.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence

from server.text.calls.schemas import Schema
from server.text.grammar import JSON_OPTIONS, GrammarError, GrammarSource, as_regex, check_keywords

Spell = Callable[[str], Sequence[str]]
"""A text as terminals of the grammar: `<[id]>` for a special token, a quoted string for the rest."""

ANYTHING = "/(?s:.*)/"
INTEGER, NUMBER = r"/-?(0|[1-9][0-9]{0,38})/", r"/-?(0|[1-9][0-9]{0,38})(\.[0-9]{1,20})?/"
"""Digits are bounded: without a bound a number could go on without end."""
SILENT = frozenset({"title", "description", "default", "examples", "deprecated", "$comment", "format"})
"""Keywords that do not affect validity."""
_OF_TEXT = frozenset({"type", "enum", "const", "minLength", "maxLength", "pattern"}) | SILENT
_LONGEST = 100_000
NOT_JSON = r"~\s*((?i:true|false|null|none|nan|-?infinity)|[-+0-9.\[{\"(](?s:.*))\s*"


class Rules:
    """The rules of one grammar, added on demand."""

    def __init__(self, spell: Spell) -> None:
        self.spell = spell
        self._rules: dict[str, str] = {}
        self._names: dict[tuple[str, str, str], str] = {}
        self._limited: dict[str, None] = {}
        self._parts: list[str] = []

    def add(self, name: str, body: str, attributes: str = "") -> str:
        """Return the name of a rule, or of a terminal if `name` is in capitals; equal rules share one."""
        key = (name, body, attributes)
        if key not in self._names:
            self._names[key] = self.reserve(name)
            self.define(self._names[key], body, attributes)
        return self._names[key]

    def reserve(self, name: str) -> str:
        """Return the name of a rule to be defined later, such as one that refers to itself."""
        name = f"{name}{len(self._rules)}"
        self._rules[name] = ""
        return name

    def define(self, name: str, body: str, attributes: str = "") -> None:
        self._rules[name] = f"{name}{attributes}: {body}"

    def text(self, text: str) -> str:
        return " ".join(self.spell(text)) if text else ""

    def has_token(self, text: str) -> bool:
        """Return whether a part of it is a special token."""
        return any(terminal.startswith("<[") for terminal in self.spell(text))

    def json(self, schema: Schema) -> str:
        """Return the schema as a rule body. Raises GrammarError."""
        check_keywords(schema)
        return "%json " + json.dumps({**schema, "x-guidance": JSON_OPTIONS}, ensure_ascii=False)

    def embedded(self, source: GrammarSource) -> str:
        """Return the name of a rule for everything another grammar allows. Raises GrammarError."""
        whole, *parts = source.to_lark()
        self._parts += parts
        body = whole.removeprefix("start: ") if source.kind != "lark" else f"%lark {{\n{whole}\n}}"
        return self.add("answer", body)

    def up_to(self, tag: str, limits: Sequence[str] = (), frame: str = "") -> str:
        """Return a rule for any text up to the first `tag`; `limits`: regular expressions to match, or with ~ not to.

        One `frame` at its end is exempt from the limits.
        """
        terminals = self.spell(tag)
        place = next((place for place, each in enumerate(terminals) if each.startswith("<[")), None)
        if place is not None:  # no text contains such a token: it ends the text
            before = escaped("".join(map(json.loads, terminals[:place])))
            body = " & ".join((f"/(?s:.*){before}/", *(_limited(limit, before, frame) for limit in limits)))
            return self.add("text", f"{self._limited_text(body, limits)} {' '.join(terminals[place:])}")
        end = escaped(tag)
        only = (f"/(?s:.*){end}/", f"~/(?s:.*){end}(?s:.+)/")
        body = " & ".join((*only, *(_limited(limit, end, frame) for limit in limits)))
        return self.add("text", self._limited_text(body, limits), "[lazy]")

    def _limited_text(self, body: str, limits: Sequence[str]) -> str:
        """Return the name of a terminal, recorded if its limits may contradict one another."""
        if limits:
            self._limited[body] = None
        return self.add("TEXT", body)

    def source(self, start: str) -> GrammarSource:
        text = "\n".join((f"start: {start}", *self._rules.values()))
        limited = (f"start: PART\nPART: {each}" for each in self._limited)
        return GrammarSource("lark", text, is_ours=True, parts=(*self._parts, *limited))

    def text_value(self, schema: Schema, end: str, *, frame: str = "", unlike: Sequence[str] = ()) -> str:
        """Return a rule for a text of the schema and its closing tag. Raises GrammarError.

        `frame`: optional before the tag, and not part of the text; `unlike`: limits in addition to the schema's.
        """
        unknown = schema.keys() - _OF_TEXT
        if unknown:
            raise GrammarError(f"the keyword {min(unknown)!r} is not supported of a text in this model's calls")
        choices = [schema["const"]] if "const" in schema else schema.get("enum")
        if choices is not None:
            if any(end in choice for choice in choices):
                raise GrammarError(f"{end!r} ends a text in this model's calls, and cannot be in one")
            said = " | ".join(json.dumps(choice) for choice in choices if choice) or '""'
            framed = json.dumps(frame) + ("" if any(choice.endswith(frame) for choice in choices) else "?")
            return f"({said}) {framed if frame else ''} {self.text(end)}"
        return self.up_to(end, [*_limits(schema), *unlike], frame)


def _limited(limit: str, end: str, frame: str) -> str:
    """Return a terminal's condition that the text before `end`, less one `frame`, is within the limit."""
    sign, bare = ("~", limit[1:]) if limit.startswith("~") else ("", limit)
    if not frame:
        return f"{sign}/{bare}{end}/"
    framed = f"{escaped(frame)}{end}"
    return f"{sign}(/({bare}){framed}/ | (/({bare}){end}/ & ~/(?s:.*){framed}/))"


def _limits(schema: Schema) -> list[str]:
    """Return the limits of a text's length and pattern."""
    limits = []
    least, most, pattern = schema.get("minLength", 0), schema.get("maxLength"), schema.get("pattern")
    if least or most is not None:
        if max(least, most or 0) > _LONGEST:
            raise GrammarError(f"a text's length can be held to up to {_LONGEST} characters")
        limits.append(f"(?s:.{{{least},{'' if most is None else most}}})")
    if pattern is not None:
        before = "" if pattern.startswith("^") else "(?s:.*)"
        after = "" if pattern.endswith("$") and not pattern.endswith("\\$") else "(?s:.*)"
        bare = _ascii(pattern.removeprefix("^").removesuffix("" if after else "$"))
        limits.append(f"{before}({as_regex(bare)}){after}")
    return limits


def _ascii(pattern: str) -> str:
    r"""Return a pattern with `\d` and `\w` as in JSON Schema: the grammar's match digits and letters of all scripts."""
    in_class = False

    def told(found: re.Match[str]) -> str:
        nonlocal in_class
        if found[0] in "[]":
            in_class = found[0] == "["
            return found[0]
        chars = {r"\d": "0-9", r"\w": "A-Za-z0-9_"}.get(found[0])
        return found[0] if chars is None else chars if in_class else f"[{chars}]"

    return re.sub(r"\\.|\[|\]", told, pattern)


def without(tag: str) -> str:
    """Return a terminal for texts that do not contain the tag."""
    return f"{ANYTHING} & ~/(?s:.*){escaped(tag)}(?s:.*)/"


def escaped(text: str) -> str:
    """Return the text escaped for a regular expression."""
    return "".join(f"\\x{{{ord(character):x}}}" for character in text)
