"""The body of `/v1/chat/completions` to a job. Decides defaults and what is refused; knows nothing of answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from server.dialects.openai_chat.schema import ChatRequest, Message
from server.dialects.openai_shared import NO_EFFECT, UNSUPPORTED, check_extra, check_stream_options, decode_sampling
from server.errors import InvalidRequest, UnsupportedParameter
from server.service.job import ChatPrompt, GenerationJob

_UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    **UNSUPPORTED,
    "best_of": (1,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "audio": (),
    "modalities": (["text"],),
    "prediction": (),
    "reasoning_effort": (),
    "reasoning": (),
    "thinking": (),
    "enable_thinking": (),
    "verbosity": (),
    "web_search_options": (),
    "echo": (False,),
    "add_special_tokens": (False,),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "chat_template": (),
    "documents": ([],),
    "mm_processor_kwargs": (),
}
_NO_EFFECT = NO_EFFECT | {"parallel_tool_calls"}

_UNSUPPORTED_IN_MESSAGE: Mapping[str, tuple[Any, ...]] = {
    "tool_calls": ([],),
    "function_call": (),
    "audio": (),
    "refusal": ("",),
    "prefix": (False,),
    "prefill": (False,),
    "partial": (False,),
}


def decode(body: ChatRequest, request_id: str) -> tuple[GenerationJob, list[str]]:
    """The job, and the names of the fields that nobody looked at. Raises InvalidRequest."""
    ignored = check_extra(body.model_extra or {}, _UNSUPPORTED, _NO_EFFECT)
    ignored += check_stream_options(body)
    for position, message in enumerate(body.messages):
        ignored += _check_message(position, message)
    prompt = ChatPrompt(tuple(map(_decode_message, body.messages)), body.chat_template_kwargs or {})
    job = GenerationJob(
        request_id=f"chatcmpl-{request_id}",
        model=body.model or "",
        prompts=(prompt,),
        prompt_param="messages",
        n=body.n or 1,
        max_tokens=_decode_max_tokens(body),
        sampling=decode_sampling(body, _decode_num_logprobs(body)),
        stop=tuple(body.stop or ()),
        ignore_eos=bool(body.ignore_eos),
    )
    return job, ignored


def _check_message(position: int, message: Message) -> list[str]:
    try:
        ignored = check_extra(message.model_extra or {}, _UNSUPPORTED_IN_MESSAGE, ())
    except UnsupportedParameter as error:
        raise UnsupportedParameter(f"messages.{position}.{error.param}") from None
    return [f"messages.{name}" for name in ignored]


def _decode_message(message: Message) -> dict[str, str]:
    role = "system" if message.role == "developer" else message.role
    decoded = {"role": role, "content": message.content}
    if message.name is not None:
        decoded["name"] = message.name
    if message.tool_call_id is not None:
        decoded["tool_call_id"] = message.tool_call_id
    return decoded


def _decode_max_tokens(body: ChatRequest) -> int | None:
    new, old = body.max_completion_tokens, body.max_tokens
    if new is not None and old is not None and new != old:
        raise InvalidRequest(
            "'max_tokens' and 'max_completion_tokens' are both set, and differ.",
            param="max_completion_tokens",
            code="invalid_value",
        )
    return old if new is None else new


def _decode_num_logprobs(body: ChatRequest) -> int | None:
    if body.logprobs:
        return body.top_logprobs or 0
    if body.top_logprobs:
        raise InvalidRequest("'top_logprobs' needs 'logprobs' to be true.", param="top_logprobs", code="invalid_value")
    return None
