"""A conversation on the wire to the messages that chat templates read. Knows roles; knows no template."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from server.dialects.anthropic_messages.blocks import Blocks, Ignored, invalid, read_blocks, read_texts
from server.dialects.anthropic_messages.schema import Message
from server.text.chat_template import Ending

_OF_USER = ("text", "tool_result")
_OF_ASSISTANT = ("text", "thinking", "redacted_thinking", "tool_use")
_BETWEEN = "\n"
"""Blocks of a user or of the system are paragraphs; those of an answer were one text."""


def decode_messages(
    system: str | list[Any] | None, messages: Sequence[Message], ignored: Ignored
) -> tuple[tuple[Mapping[str, Any], ...], Ending]:
    """The template's messages, and how they end: an assistant's last message is continued. Raises InvalidRequest."""
    decoded: list[dict[str, Any]] = []
    said = _BETWEEN.join(read_texts(system or "", "system", ignored))
    if said:
        decoded.append({"role": "system", "content": said})
    known: set[str] = set()  # ids of calls
    has_user = False
    for number, message in enumerate(messages):
        place = f"messages.{number}"
        for name in message.model_extra or ():
            ignored.add(f"messages.{name}")
        if message.role == "system":
            content = _BETWEEN.join(read_texts(message.content, f"{place}.content", ignored))
            decoded.append({"role": "system", "content": content})
            continue
        if message.role == "user":
            has_user = True
            decoded += _of_user(read_blocks(message.content, f"{place}.content", _OF_USER, ignored), known)
            continue
        if not has_user:
            raise invalid(f"{place}.role", f"Invalid value for '{place}.role': the first message must be a user's.")
        blocks = read_blocks(message.content, f"{place}.content", _OF_ASSISTANT, ignored)
        known |= {call["id"] for call in blocks.calls}
        decoded.append(_of_assistant(blocks))
    if not has_user:
        raise invalid("messages", "Invalid value for 'messages': there is no message of a user.")
    if messages[-1].role != "assistant":
        return tuple(decoded), "answer"
    if decoded[-1].get("tool_calls"):
        place = f"messages.{len(messages) - 1}.content"
        raise invalid(
            place, f"Invalid value for '{place}': a 'tool_use' needs a 'tool_result' in the next message."
        )
    return tuple(decoded), "continued"


def _of_user(blocks: Blocks, known: set[str]) -> Iterator[dict[str, Any]]:
    """Results come first, as they have to stand behind their calls."""
    for place, call_id, text in blocks.results:
        if call_id not in known:
            message = f"Invalid value for '{place}.tool_use_id': no 'tool_use' before it has the id {call_id[:80]!r}."
            raise invalid(f"{place}.tool_use_id", message)
        yield {"role": "tool", "content": text, "tool_call_id": call_id}
    if blocks.texts or not blocks.results:
        yield {"role": "user", "content": _BETWEEN.join(blocks.texts)}


def _of_assistant(blocks: Blocks) -> dict[str, Any]:
    decoded: dict[str, Any] = {"role": "assistant", "content": "".join(blocks.texts)}
    if blocks.calls:
        decoded["tool_calls"] = blocks.calls
    thought = _BETWEEN.join(filter(None, blocks.thoughts))
    if thought:
        decoded["reasoning_content"] = thought
    return decoded
