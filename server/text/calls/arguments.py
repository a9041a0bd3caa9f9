"""Arguments parsed from the text of a call, each with its source text.

The texts are complete here; `reader` parses them incrementally.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from server.json_text import MOST_DEPTH
from server.text.calls.values import Number, literal_at, read_exact, read_literal, write_exact

_SPACE = re.compile(r"\s*")
_KEYWORD = re.compile(r"\s*([\w.-]+)\s*=\s*")
_BARE_KEY = re.compile(r"""\s*(?:"((?:[^"\\]|\\.)*+)"\s*|([^\s:"'{}\[\],][^:"'{}\[\],]*)):""", re.DOTALL)
_BARE_WORD = re.compile(r"[^,{}\[\]]*")
_BARE_PYTHON = re.compile(r"[^,]*")
NAMES = ("name", "tool_name", "function_name", "tool", "function")
ARGUMENTS = ("arguments", "parameters", "args", "input", "tool_input")
"""Keys that models use for the name and the arguments of a call."""
BESIDE = frozenset({"id", "type", "index", "tool_call_id", "call_id"})
_DECODER = json.JSONDecoder(strict=False, parse_int=Number, parse_float=Number)


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument as it was written.

    `raw` is its text. For `text`, it is the value; for `value`, the text that `value` was parsed from; for `unknown`,
    the tool's schema decides the type.
    """

    key: str
    raw: str
    kind: Literal["text", "value", "unknown"]
    value: Any = None


def json_arguments(text: str) -> list[Argument]:
    """Return the members of an object. Raises ValueError."""
    return [Argument(key, raw, "value", value) for key, value, raw in members_of(text)]


def members_of(text: str) -> list[tuple[str, Any, str]]:
    """Return (key, value, text of the value) of a JSON object or a Python literal. Raises ValueError."""
    try:
        whole = read_exact(text)
    except ValueError:
        whole = read_literal(text)
        if isinstance(whole, dict):
            return [(key, value, write_exact(value)) for key, value in whole.items()]
    if not isinstance(whole, dict):
        raise ValueError("it is no object")
    try:
        return _json_members(text)
    except (ValueError, IndexError):  # a comma too many, for example
        return [(key, value, write_exact(value)) for key, value in whole.items()]


def _json_members(text: str) -> list[tuple[str, Any, str]]:
    found: dict[str, tuple[str, Any, str]] = {}
    at = _skip(text, _skip(text, 0) + 1)
    while text[at] != "}":
        key, at = _DECODER.raw_decode(text, at)
        start = _skip(text, _skip(text, at) + 1)
        value, at = _DECODER.raw_decode(text, start)
        found[key] = (key, value, text[start:at])
        at = _skip(text, at)
        if text[at] == ",":
            at = _skip(text, at + 1)
    return list(found.values())


def items_of(text: str) -> list[str]:
    """Return the texts of a list's items. Raises ValueError."""
    read: Callable[[str, int], tuple[Any, int]] = _DECODER.raw_decode
    try:
        whole = read_exact(text)
    except ValueError:
        whole, read = read_literal(text), literal_at
    if not isinstance(whole, list):
        raise ValueError("it is no list")
    try:
        return _raw_items(text, read)
    except (ValueError, IndexError):
        return [write_exact(item) for item in whole]


def _raw_items(text: str, read: Callable[[str, int], tuple[Any, int]]) -> list[str]:
    items = []
    at = _skip(text, _skip(text, 0) + 1)
    while text[at] != "]":
        _, end = read(text, at)
        items.append(text[at:end])
        at = _skip(text, end)
        if text[at] == ",":
            at = _skip(text, at + 1)
    return items


def python_arguments(text: str) -> list[Argument]:
    """Return the keyword arguments of a call, from its opening parenthesis to the closing one. Raises ValueError."""
    arguments: dict[str, Argument] = {}
    at, end = 1, len(text) - 1
    while _skip(text, at) < end:
        found = _KEYWORD.match(text, at)
        if found is None:
            raise ValueError("an argument has no name")
        argument, at = _python_argument(text, found[1], found.end(), end)
        arguments[argument.key] = argument
        at = _skip(text, at)
        if at < end and text[at] != ",":
            raise ValueError("a comma is missing")
        at += 1
    return list(arguments.values())


def _python_argument(text: str, key: str, start: int, end: int) -> tuple[Argument, int]:
    """Read a literal, or else the text up to the next comma."""
    try:
        value, at = literal_at(text, start)
        if text[_skip(text, at)] in ",)":
            is_text = isinstance(value, str) and not isinstance(value, Number)
            return Argument(key, value if is_text else text[start:at], "value", value), at
    except ValueError:
        pass
    found = _BARE_PYTHON.match(text, start, end)
    word = found[0] if found else ""
    return Argument(key, word.strip(), "unknown"), start + len(word)


def bare_arguments(text: str, quote: str) -> list[Argument]:
    """Return the members of an object with bare keys and texts between `quote`. Raises ValueError."""
    members, end = _Bare(text, quote).members(_skip(text, 0), 0)
    if text[end:].strip():
        raise ValueError("something follows the object")
    return [Argument(key, raw, kind, value) for key, (kind, value, raw) in members.items()]


_BareValue = tuple[Literal["text", "value", "unknown"], Any, str]


class _Bare:
    """Parser of values with bare keys and a custom quote, in one text."""

    def __init__(self, text: str, quote: str) -> None:
        self._text, self._quote = text, quote

    def members(self, at: int, depth: int) -> tuple[dict[str, _BareValue], int]:
        if depth > MOST_DEPTH:
            raise ValueError("it is nested too deeply")
        members: dict[str, _BareValue] = {}
        at = self._after(at, "{")
        while self._text[at : at + 1] != "}":
            key, at = self._key(at)
            members[key], at = self._value(at, depth + 1)
            at = self._comma(at, "}")
        return members, at + 1

    def _key(self, at: int) -> tuple[str, int]:
        if self._text.startswith(self._quote, at):
            (_, key, _), at = self._quoted(at)
            return key, self._after(at, ":")
        found = _BARE_KEY.match(self._text, at)
        if found is None:
            raise ValueError(f"there is no key at character {at}")
        return found[1] if found[1] is not None else found[2].strip(), _skip(self._text, found.end())

    def _value(self, at: int, depth: int) -> tuple[_BareValue, int]:
        text = self._text
        if text.startswith(self._quote, at):
            return self._quoted(at)
        if text[at : at + 1] == "{":
            members, end = self.members(at, depth)
            return ("value", {key: self._plain(each) for key, each in members.items()}, text[at:end]), end
        if text[at : at + 1] == "[":
            return self._list(at, depth)
        if text[at : at + 1] == '"':
            value, end = literal_at(text, at)
            return ("value", value, value), end
        found = _BARE_WORD.match(text, at)
        word = found[0] if found else ""
        return ("unknown", None, word.strip()), at + len(word)

    def _list(self, at: int, depth: int) -> tuple[_BareValue, int]:
        if depth > MOST_DEPTH:
            raise ValueError("it is nested too deeply")
        items, start = [], at
        at = self._after(at, "[")
        while self._text[at : at + 1] != "]":
            item, at = self._value(at, depth + 1)
            items.append(self._plain(item))
            at = self._comma(at, "]")
        return ("value", items, self._text[start : at + 1]), at + 1

    def _quoted(self, at: int) -> tuple[_BareValue, int]:
        start = at + len(self._quote)
        end = self._text.find(self._quote, start)
        if end < 0:
            raise ValueError("a text is not closed")
        value = self._text[start:end]
        return ("value", value, value), end + len(self._quote)

    def _plain(self, value: _BareValue) -> Any:
        """Return a nested value: a word is JSON, or a text."""
        kind, plain, raw = value
        if kind != "unknown":
            return plain
        try:
            return read_exact(raw)
        except ValueError:
            return raw

    def _after(self, at: int, mark: str) -> int:
        at = _skip(self._text, at)
        if self._text[at : at + 1] != mark:
            raise ValueError(f"{mark} is missing at character {at}")
        return _skip(self._text, at + 1)

    def _comma(self, at: int, end: str) -> int:
        at = _skip(self._text, at)
        if self._text[at : at + 1] == ",":
            return _skip(self._text, at + 1)
        if self._text[at : at + 1] != end:
            raise ValueError(f"a comma is missing at character {at}")
        return at


def call_in(text: str, keys: Sequence[str], *, is_named_by_key: bool) -> tuple[str, list[Argument], str | None, bool]:
    """Return (name, arguments, id, whether the arguments were a member of their own) of a call that is one object.

    `keys`: the family's keys for name and arguments; those of other families are accepted too. Raises ValueError.
    """
    members = {key: (value, raw) for key, value, raw in members_of(text)}
    if is_named_by_key and len(members) == 1:
        ((name, (_, raw)),) = members.items()
        return name, json_arguments(raw), None, True
    inner, raw = members.get("function", (None, ""))
    if isinstance(inner, dict):
        name, arguments, _, has_arguments = call_in(raw, keys, is_named_by_key=False)
        return name, arguments, _id_in(members), has_arguments
    name_key = next((key for key in (keys[0], *NAMES) if key in members), "")
    name = members.get(name_key, ("", ""))[0]
    if not isinstance(name, str) or not name:
        raise ValueError("a call has a name")
    key = next((key for key in (keys[1], *ARGUMENTS) if key in members), None)
    if key is not None:
        value, raw = members[key]
        return name, _arguments_of(value, raw), _id_in(members), True
    others = {key: found for key, found in members.items() if key not in BESIDE and key != name_key}
    arguments = [Argument(key, raw, "value", value) for key, (value, raw) in others.items()]
    return name, arguments, _id_in(members), False


def _arguments_of(value: Any, raw: str) -> list[Argument]:
    """Return arguments given as an object, as the text of one, or absent."""
    if value is None or value in ("", []):
        return []
    return json_arguments(value if isinstance(value, str) else raw)


def _id_in(members: dict[str, tuple[Any, str]]) -> str | None:
    value = members.get("id", (None,))[0]
    return value if isinstance(value, str) and value and not isinstance(value, Number) else None


def _skip(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at
