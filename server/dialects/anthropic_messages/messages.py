"""Conversion of a conversation to chat template messages. Handles roles; independent of templates."""

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
    """Return the template's messages and their ending: a last assistant message is continued. Raises InvalidRequest."""
    _check_first(messages)
    said = _BETWEEN.join(read_texts(system or "", "system", ignored))
    decoded: list[dict[str, Any]] = [{"role": "system", "content": said}] if said else []
    known: set[str] = set()  # ids of calls
    for number, message in enumerate(messages):
        decoded += _decode(f"messages.{number}", message, known, ignored)
    if messages[-1].role != "assistant":
        return tuple(decoded), "answer"
    if decoded[-1].get("tool_calls"):
        place = f"messages.{len(messages) - 1}.content"
        raise invalid(place, f"Invalid value for '{place}': a 'tool_use' needs a 'tool_result' in the next message.")
    return tuple(decoded), "continued"


def _check_first(messages: Sequence[Message]) -> None:
    first = next((number for number, message in enumerate(messages) if message.role != "system"), None)
    if first is None:
        raise invalid("messages", "Invalid value for 'messages': there is no message of a user.")
    if messages[first].role != "user":
        place = f"messages.{first}.role"
        raise invalid(place, f"Invalid value for '{place}': the first message must be a user's.")


def _decode(place: str, message: Message, known: set[str], ignored: Ignored) -> Iterator[dict[str, Any]]:
    """Decode a message. `known`: the ids of previous calls, to which those of this message are added."""
    for name in message.model_extra or ():
        ignored.add(f"messages.{name}")
    place = f"{place}.content"
    if message.role == "system":
        yield {"role": "system", "content": _BETWEEN.join(read_texts(message.content, place, ignored))}
    elif message.role == "user":
        yield from _of_user(read_blocks(message.content, place, _OF_USER, ignored), known)
    else:
        blocks = read_blocks(message.content, place, _OF_ASSISTANT, ignored)
        known |= {call["id"] for call in blocks.calls}
        yield _of_assistant(blocks)


def _of_user(blocks: Blocks, known: set[str]) -> Iterator[dict[str, Any]]:
    """Yield results first, because they must follow their calls."""
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
