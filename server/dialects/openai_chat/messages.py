"""Convert a conversation on the wire to the messages that chat templates read. Independent of the template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from server.dialects.openai_calls import decode_arguments
from server.dialects.openai_chat.schema import FunctionCall, Message
from server.dialects.openai_shared import check_extra
from server.errors import InvalidRequest, UnsupportedParameter
from server.text.chat_template import Ending

_UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "audio": (),
    "refusal": ("",),
    "prefill": (False,),
}
_ROLES = {"developer": "system", "function": "tool"}


def decode_messages(messages: Sequence[Message]) -> tuple[tuple[Mapping[str, Any], ...], list[str]]:
    """Return the template's messages and the names of ignored fields. Raises UnsupportedParameter."""
    ignored: list[str] = []
    decoded = []
    last_call_id = None  # for the older API, whose calls have no id
    for position, message in enumerate(messages):
        ignored += _check_extra(position, message)
        decoded.append(_decode(message))
        if message.function_call is not None:
            last_call_id = f"call_{position}"
            decoded[-1]["tool_calls"] = [_call(message.function_call, last_call_id)]
        elif message.role == "function" and last_call_id is not None:
            decoded[-1]["tool_call_id"] = last_call_id
    return tuple(decoded), ignored


def decode_ending(messages: Sequence[Message], continues: bool | None, opens_answer: bool | None) -> Ending:
    """Return where the answer begins: it continues the last message only on request. Raises InvalidRequest."""
    for position, message in enumerate(messages):
        if message.prefix and position < len(messages) - 1:
            raise _invalid(f"messages.{position}.prefix", "Only the last message can be continued.")
    param = f"messages.{len(messages) - 1}.prefix" if messages[-1].prefix else "continue_final_message"
    if not continues and not messages[-1].prefix:
        return "closed" if opens_answer is False else "answer"
    if opens_answer:
        raise _invalid(param, "The last message cannot be continued with 'add_generation_prompt' true.")
    if messages[-1].role != "assistant" or messages[-1].tool_calls or messages[-1].function_call:
        raise _invalid(param, "Only an assistant's message without calls can be continued.")
    return "continued"


def _invalid(param: str, message: str) -> InvalidRequest:
    return InvalidRequest(message, param=param, code="invalid_value")


def _check_extra(position: int, message: Message) -> list[str]:
    try:
        ignored = check_extra(message.model_extra or {}, _UNSUPPORTED, ())
    except UnsupportedParameter as error:
        raise UnsupportedParameter(f"messages.{position}.{error.param}") from None
    return [f"messages.{name}" for name in ignored]


def _decode(message: Message) -> dict[str, Any]:
    decoded: dict[str, Any] = {"role": _ROLES.get(message.role, message.role), "content": message.content or ""}
    if message.name is not None:
        decoded["name"] = message.name
    if message.tool_call_id is not None:
        decoded["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        decoded["tool_calls"] = [_call(call.function, call.id) for call in message.tool_calls]
    reasoning = message.reasoning_content or message.reasoning
    if message.role == "assistant" and reasoning:
        decoded["reasoning_content"] = reasoning
    return decoded


def _call(function: FunctionCall, call_id: str | None) -> dict[str, Any]:
    call = {"type": "function", "function": {"name": function.name, "arguments": decode_arguments(function.arguments)}}
    return call if call_id is None else {"id": call_id, **call}
