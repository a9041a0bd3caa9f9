"""Hand-written validation of content blocks, so that an error names its place. Independent of roles and templates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from server.dialects.anthropic_messages.signatures import MOST_BYTES, unpack
from server.errors import InvalidRequest
from server.json_text import why_unwritable

Object = Mapping[str, Any]

_COMMON = frozenset({"type", "cache_control"})
_KNOWN: Mapping[str, frozenset[str]] = {
    "text": frozenset({"text", "citations"}),
    "thinking": frozenset({"thinking", "signature"}),
    "redacted_thinking": frozenset({"data"}),
    "tool_use": frozenset({"id", "name", "input", "caller", "toolset_name"}),
    "tool_result": frozenset({"tool_use_id", "content", "is_error", "toolset_name"}),
    "tool_reference": frozenset({"tool_name"}),
}
_MEDIA = {"image": "Images are", "document": "Documents are", "search_result": "Search results are"}


def invalid(place: str, message: str) -> InvalidRequest:
    return InvalidRequest(message, param=place, code="invalid_value")


@dataclass(slots=True)
class Ignored:
    """Names of ignored fields, for a header; and the amount of reasoning restored from the request's signatures."""

    names: list[str] = field(default_factory=list)
    num_unpacked_chars: int = 0

    def add(self, name: str) -> None:
        self.names.append(name)


@dataclass(slots=True)
class Blocks:
    """The content of one message, by kind; in order within a kind."""

    texts: list[str] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    calls: list[dict[str, Any]] = field(default_factory=list)
    """In the form of chat templates."""
    results: list[tuple[str, str, str]] = field(default_factory=list)
    """Place, id of the call, text."""


def read_texts(content: Any, place: str, ignored: Ignored) -> list[str]:
    """Return the texts of a content that may contain nothing else. Raises InvalidRequest."""
    if isinstance(content, str):
        return [content]
    return [_read_text(block, at) for at, block in _each(content, place, ("text",), ignored)]


def read_blocks(content: Any, place: str, kinds: tuple[str, ...], ignored: Ignored) -> Blocks:
    """Read a message's content, which may contain blocks of `kinds`. Raises InvalidRequest."""
    found = Blocks()
    if isinstance(content, str):
        found.texts.append(content)
        return found
    readers: Mapping[str, Callable[[Object, str], None]] = {
        "text": lambda block, at: found.texts.append(_read_text(block, at)),
        "thinking": lambda block, at: found.thoughts.append(_read_thought(block, at, ignored)),
        "redacted_thinking": lambda block, at: ignored.add("messages.content.redacted_thinking"),
        "tool_use": lambda block, at: found.calls.append(_read_call(block, at)),
        "tool_result": lambda block, at: found.results.append(_read_result(block, at, ignored)),
    }
    for at, block in _each(content, place, kinds, ignored):
        readers[block["type"]](block, at)
    return found


def _each(content: Any, place: str, kinds: tuple[str, ...], ignored: Ignored) -> Iterator[tuple[str, Object]]:
    """Yield (place, block) for a list of blocks of these kinds."""
    if not isinstance(content, list):
        raise invalid(place, f"Invalid value for '{place}': Input should be a string or a list of content blocks.")
    for number, block in enumerate(content):
        at = f"{place}.{number}"
        if not isinstance(block, dict):
            raise invalid(at, f"Invalid value for '{at}': Input should be an object.")
        kind = block.get("type")
        if not isinstance(kind, str) or kind not in kinds:
            raise _refused(kind, f"{at}.type", kinds)
        for name in block.keys() - _KNOWN[kind] - _COMMON:
            ignored.add(f"messages.content.{name}" if place.startswith("messages") else f"system.{name}")
        yield at, block


def _refused(kind: Any, at: str, kinds: tuple[str, ...]) -> InvalidRequest:
    if isinstance(kind, str) and kind in _MEDIA:
        return invalid(at, f"Invalid value for '{at}': {_MEDIA[kind]} not supported; this server reads text alone.")
    shown = repr(kind[:40]) if isinstance(kind, str) else "that"
    expected = " or ".join(repr(each) for each in kinds)
    return invalid(at, f"Invalid value for '{at}': {shown} is not supported here; Input should be {expected}.")


def _read_text(block: Object, at: str) -> str:
    return _string(block, "text", at)


def _read_thought(block: Object, at: str, ignored: Ignored) -> str:
    thought = _string(block, "thinking", at)
    signature = "" if block.get("signature") is None else _string(block, "signature", at)
    if thought:
        return thought
    try:
        brought = unpack(signature) or ""
        ignored.num_unpacked_chars += len(brought)
        if ignored.num_unpacked_chars > MOST_BYTES:
            raise ValueError("the request's are too large together")
        return brought
    except ValueError as error:
        raise invalid(f"{at}.signature", f"Invalid value for '{at}.signature': it is damaged ({error}).") from None


def _read_call(block: Object, at: str) -> dict[str, Any]:
    given = block.get("input")
    if not isinstance(given, dict):
        raise invalid(f"{at}.input", f"Invalid value for '{at}.input': Input should be an object.")
    check_writable(given, f"{at}.input")
    name, call_id = _string(block, "name", at), _string(block, "id", at)
    if not name:
        raise invalid(f"{at}.name", f"Invalid value for '{at}.name': it must not be empty.")
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": given}}


def _read_result(block: Object, at: str, ignored: Ignored) -> tuple[str, str, str]:
    is_error = block.get("is_error")
    if not isinstance(is_error, bool | None):
        raise invalid(f"{at}.is_error", f"Invalid value for '{at}.is_error': Input should be true or false.")
    text = _read_result_text(block.get("content"), f"{at}.content", ignored)
    # chat templates have no field for it
    return at, _string(block, "tool_use_id", at), f"Error: {text}" if is_error else text


def _read_result_text(content: Any, place: str, ignored: Ignored) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return check_unicode(content, place)
    found = []
    for at, block in _each(content, place, ("text", "tool_reference"), ignored):
        found.append(_string(block, "text" if block["type"] == "text" else "tool_name", at))
    return "\n".join(found)


def _string(block: Object, name: str, at: str) -> str:
    value = block.get(name)
    if not isinstance(value, str):
        what = "is required" if value is None else "Input should be a valid string"
        raise invalid(f"{at}.{name}", f"Invalid value for '{at}.{name}': {what}.")
    return check_unicode(value, f"{at}.{name}")


def check_writable(value: Object, place: str) -> None:
    """Raise InvalidRequest for an object that the prompt could not repeat."""
    why = why_unwritable(value)
    if why is not None:
        raise invalid(place, f"Invalid value for '{place}': {why}.")


def check_unicode(text: str, place: str) -> str:
    """Return the text if it can be encoded. Raises InvalidRequest."""
    try:
        text.encode()
    except UnicodeEncodeError:
        message = f"Invalid value for '{place}': it is not valid Unicode (half of a surrogate pair)."
        raise invalid(place, message) from None
    return text
