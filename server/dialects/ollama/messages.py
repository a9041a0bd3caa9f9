"""Conversion of an Ollama conversation to chat template messages. Handles roles; independent of templates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from server.dialects.ollama.schema import Message, ToolCall
from server.dialects.openai_calls import decode_arguments
from server.errors import InvalidRequest, UnsupportedParameter
from server.text.chat_template import Ending

_ROLES = {"developer": "system"}


def decode_messages(messages: Sequence[Message]) -> tuple[tuple[Mapping[str, Any], ...], list[str]]:
    """Return the template's messages, and the names of ignored fields. Raises InvalidRequest.

    Calls without ids receive some, and a result without one belongs to the first call of its tool without a result.
    """
    ignored: list[str] = []
    decoded = []
    waiting: list[tuple[str, str]] = []
    for position, message in enumerate(messages):
        ignored += [f"messages.{name}" for name in message.model_extra or ()]
        check_images(message.images, f"messages.{position}.images")
        if message.tool_calls and message.role != "assistant":
            place = f"messages.{position}.tool_calls"
            raise _invalid(place, f"Invalid value for '{place}': only a message of the assistant has calls.")
        turn = _decode(message)
        if message.tool_calls:
            turn["tool_calls"] = [_call(call, f"call_{position}_{at}") for at, call in enumerate(message.tool_calls)]
            waiting = [(call["id"], call["function"]["name"]) for call in turn["tool_calls"]]
        elif message.role == "tool":
            _name_call(turn, waiting)
        decoded.append(turn)
    return tuple(decoded), ignored


def decode_ending(messages: Sequence[Message]) -> Ending:
    """Return where the answer begins: it continues a last assistant message, as Ollama's templates do."""
    last = messages[-1]
    return "continued" if last.role == "assistant" and not last.tool_calls else "answer"


def check_images(images: Sequence[Any] | None, param: str) -> None:
    """Raise UnsupportedParameter if there are any images."""
    if images:
        raise UnsupportedParameter(param, f"'{param}': this server takes text alone, no images.")


def _decode(message: Message) -> dict[str, Any]:
    decoded: dict[str, Any] = {"role": _ROLES.get(message.role, message.role), "content": message.content or ""}
    if message.role == "assistant" and message.thinking:
        decoded["reasoning_content"] = message.thinking
    if message.role == "tool":
        decoded |= {} if message.tool_name is None else {"name": message.tool_name}
        decoded |= {} if message.tool_call_id is None else {"tool_call_id": message.tool_call_id}
    return decoded


def _call(call: ToolCall, id: str) -> dict[str, Any]:
    function = {"name": call.function.name, "arguments": decode_arguments(call.function.arguments or {})}
    return {"id": call.id or id, "type": "function", "function": function}


def _name_call(result: dict[str, Any], waiting: list[tuple[str, str]]) -> None:
    """Give a result its call's id and name, and remove the call from `waiting`."""
    id, name = result.get("tool_call_id"), result.get("name")
    for call in waiting:
        if (id is None or call[0] == id) and (name is None or call[1] == name):
            result["tool_call_id"] = call[0]
            result.setdefault("name", call[1])
            waiting.remove(call)
            return


def _invalid(param: str, message: str) -> InvalidRequest:
    return InvalidRequest(message, param=param, code="invalid_value")
