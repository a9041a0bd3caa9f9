"""Conversion of conversation items to chat template messages, and to the output of `input_items`.

Consecutive items of the assistant, its reasoning, texts and calls, form one message. Independent of templates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from server.dialects.openai_calls import decode_arguments
from server.dialects.openai_responses.reading import read_content, read_text, refuse
from server.dialects.openai_responses.sealed import unseal
from server.dialects.openai_responses.tools import INPUT, Toolbox
from server.errors import UnsupportedParameter

Item = Mapping[str, Any]
Messages = tuple[Mapping[str, Any], ...]

_ROLES = {"developer": "system", "system": "system", "user": "user", "assistant": "assistant"}
_KNOWN: Mapping[str, frozenset[str]] = {
    "message": frozenset({"role", "content", "phase"}),
    "function_call": frozenset({"call_id", "name", "namespace", "arguments", "caller"}),
    "custom_tool_call": frozenset({"call_id", "name", "namespace", "input", "caller"}),
    "function_call_output": frozenset({"call_id", "output", "name", "namespace", "caller"}),
    "custom_tool_call_output": frozenset({"call_id", "output", "name", "namespace", "caller"}),
    "reasoning": frozenset({"summary", "content", "encrypted_content"}),
}
_OF_ALL = frozenset({"type", "id", "status", "internal_chat_message_metadata_passthrough", "metadata"})
_WITHOUT_WORDS = frozenset(
    {
        *("web_search_call", "file_search_call", "image_generation_call", "tool_search_call", "tool_search_output"),
        *("mcp_list_tools", "mcp_approval_request", "mcp_approval_response", "compaction_trigger"),
    }
)
"""Items of tools that OpenAI runs, which have no text for a model."""
_PREFIXES = {
    "message": "msg",
    "function_call": "fc",
    "function_call_output": "fco",
    "custom_tool_call": "ctc",
    "custom_tool_call_output": "ctco",
    "reasoning": "rs",
}


def type_of(item: Item, at: str) -> str:
    """Return the type, which may be omitted for a message and for a reference. Raises InvalidRequest."""
    if item.get("type") is None and "role" not in item and "id" in item:
        return "item_reference"
    return read_text(item, "type", at, default="message" if "role" in item else None)


def resolve_references(items: Sequence[Item], find: Callable[[str, str], Item]) -> list[Item]:
    """Replace every reference. `find` takes an id and its position in the body. Raises InvalidRequest."""
    found = []
    for position, item in enumerate(items):
        at = f"input.{position}"
        is_reference = type_of(item, at) == "item_reference"
        found.append(find(read_text(item, "id", at), f"{at}.id") if is_reference else item)
    return found


def decode_items(items: Sequence[Item], num_known: int, box: Toolbox) -> tuple[Messages, list[str]]:
    """Return the template's messages, and the names of ignored fields. Raises InvalidRequest.

    `num_known`: number of leading items that were stored, not sent with this request.
    """
    turns = _Turns(box)
    for position, item in enumerate(items):
        turns.add(item, f"input.{position - num_known}" if position >= num_known else "previous_response_id")
    return tuple(turns.messages), list(dict.fromkeys(turns.ignored))


@dataclass(slots=True)
class _Turns:
    """The conversation read so far."""

    box: Toolbox
    messages: list[dict[str, Any]] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    call_ids: set[str] = field(default_factory=set)
    answer: dict[str, Any] | None = None
    """The assistant message in progress."""
    last: str = ""
    """Type of its last item."""

    def add(self, item: Item, at: str) -> None:
        kind = type_of(item, at)
        if kind in _WITHOUT_WORDS:
            self.ignored.append(f"input.{kind}")
            return
        if kind not in _KNOWN:
            raise UnsupportedParameter(f"{at}.type", f"Items of the type '{kind[:64]}' are not supported.")
        self.ignored += [f"input.{name}" for name in map(str, item) if name not in _KNOWN[kind] | _OF_ALL]
        _ADD[kind](self, item, at)

    def add_message(self, item: Item, at: str) -> None:
        role = read_text(item, "role", at)
        if role not in _ROLES:
            refuse(f"{at}.role", "Input should be 'user', 'system', 'developer' or 'assistant'")
        content = read_content(item.get("content"), f"{at}.content")
        if role != "assistant":
            self._close()
            self.messages.append({"role": _ROLES[role], "content": content})
            return
        if self.last == "message":
            self._close()
        self._answer("message")["content"] += content

    def add_reasoning(self, item: Item, at: str) -> None:
        text = _read_thought(item, at)
        if text:
            answer = self._answer("reasoning")
            answer["reasoning_content"] = answer.get("reasoning_content", "") + text

    def add_call(self, item: Item, at: str) -> None:
        name, call_id = read_text(item, "name", at), read_text(item, "call_id", at)
        namespace = None if item.get("namespace") is None else read_text(item, "namespace", at)
        if item.get("type") == "custom_tool_call":
            arguments: Any = {INPUT: read_text(item, "input", at)}
        else:
            arguments = decode_arguments(read_text(item, "arguments", at))
        self.call_ids.add(call_id)
        function = {"name": self.box.model_name(name, namespace), "arguments": arguments}
        calls = self._answer("call").setdefault("tool_calls", [])
        calls.append({"id": call_id, "type": "function", "function": function})

    def add_output(self, item: Item, at: str) -> None:
        call_id = read_text(item, "call_id", at)
        if call_id not in self.call_ids:
            refuse(f"{at}.call_id", "no call before it has this id")
        content = read_content(item.get("output"), f"{at}.output")
        self._close()
        self.messages.append({"role": "tool", "content": content, "tool_call_id": call_id})

    def _answer(self, last: str) -> dict[str, Any]:
        if self.answer is None:
            self.answer = {"role": "assistant", "content": ""}
            self.messages.append(self.answer)
        self.last = last
        return self.answer

    def _close(self) -> None:
        self.answer, self.last = None, ""


_ADD: Mapping[str, Callable[[_Turns, Item, str], None]] = {
    "message": _Turns.add_message,
    "reasoning": _Turns.add_reasoning,
    "function_call": _Turns.add_call,
    "custom_tool_call": _Turns.add_call,
    "function_call_output": _Turns.add_output,
    "custom_tool_call_output": _Turns.add_output,
}


def _read_thought(item: Item, at: str) -> str:
    """Return the text of reasoning: its content, its sealed text, or else its summary."""
    content = "".join(_read_texts(item.get("content"), "reasoning_text", f"{at}.content"))
    sealed = read_text(item, "encrypted_content", at, default="")
    summary = "\n\n".join(_read_texts(item.get("summary"), "summary_text", f"{at}.summary"))
    return content or unseal(sealed) or summary


def _read_texts(parts: Any, kind: str, at: str) -> list[str]:
    if parts is None:
        return []
    if not isinstance(parts, list):
        refuse(at, "Input should be a list of parts")
    texts = []
    for position, part in enumerate(parts):
        place = f"{at}.{position}"
        if not isinstance(part, Mapping):
            refuse(place, "Input should be an object")
        if read_text(part, "type", place) not in (kind, "text"):
            refuse(f"{place}.type", f"Input should be '{kind}'")
        texts.append(read_text(part, "text", place))
    return texts


# --- published items


def publish(items: Sequence[Item], key: str) -> list[dict[str, Any]]:
    """Return the items with ids and types, without unknown fields; `key`: the response's, used in the ids."""
    return [_published(item, f"{key}_i{position}") for position, item in enumerate(items)]


def _published(item: Item, number: str) -> dict[str, Any]:
    kind = item.get("type") or "message"
    given = item.get("id")
    kept = _KNOWN.get(kind, frozenset()) | _OF_ALL
    item = {name: value for name, value in item.items() if name in kept}
    written = {**item, "id": given if isinstance(given, str) and given else f"{_PREFIXES.get(kind, 'item')}_{number}"}
    if kind == "reasoning":
        return {"summary": [], **written}
    written = {**written, "type": kind, "status": item.get("status") or "completed"}
    if kind != "message" or not isinstance(item.get("content"), str):
        return written
    if item.get("role") == "assistant":
        return {**written, "content": [{"type": "output_text", "text": item["content"], "annotations": []}]}
    return {**written, "content": [{"type": "input_text", "text": item["content"]}]}
