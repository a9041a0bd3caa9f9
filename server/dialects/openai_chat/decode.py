"""Decode the body of `/v1/chat/completions` into a job: defaults and refusals. Independent of answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from server.dialects.openai_chat.encode import AnswerForm
from server.dialects.openai_chat.messages import decode_ending, decode_messages
from server.dialects.openai_chat.schema import ChatRequest, Tool
from server.dialects.openai_chat.thinking import decode_thinking, hides_reasoning
from server.dialects.openai_grammar import decode_grammar
from server.dialects.openai_names import CHAT_NAMES
from server.dialects.openai_shared import (
    NO_EFFECT,
    UNSUPPORTED,
    check_extra,
    check_stream_options,
    decode_breakers,
    decode_prediction,
    decode_sampling,
    given_fields,
)
from server.dialects.priorities import decode_priority
from server.errors import InvalidRequest
from server.service.job import ChatPrompt, GenerationJob

_UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    **UNSUPPORTED,
    "best_of": (1,),
    "audio": (),
    "modalities": (["text"],),
    "web_search_options": (),
    "echo": (False,),
    "add_special_tokens": (False,),
    "chat_template": (),
    "documents": ([],),
    "mm_processor_kwargs": (),
}
_RESERVED = frozenset(
    {
        *("self", "conversation", "messages", "tools", "documents", "chat_template", "add_generation_prompt"),
        *("continue_final_message", "tokenize", "padding", "truncation", "max_length", "return_tensors"),
        *("return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs", "conversations"),
    }
)
"""Names of parameters that the libraries that render templates use themselves."""
_REASONING_NAMES = {"both": ("reasoning_content", "reasoning"), "none": ()}
_CHOICES = {"auto": "auto", "none": "none", "required": "required", "any": "required"}
"""Values of `type` in a `tool_choice` object, as other APIs write it."""
_NO_PARAMETERS = {"type": "object", "properties": {}}


def decode(body: ChatRequest, request_id: str) -> tuple[GenerationJob, list[str]]:
    """Return the job and the names of the ignored fields. Raises InvalidRequest."""
    ignored = check_extra(body.model_extra or {}, _UNSUPPORTED, NO_EFFECT)
    ignored += check_stream_options(body)
    messages, ignored_of_messages = decode_messages(body.messages)
    ignored += ignored_of_messages
    is_old = bool(body.functions) or isinstance(body.function_call, dict)
    tools, must_call = _decode_functions(body) if is_old else _decode_tools(body)
    _check_template_kwargs(body)
    thinking = decode_thinking(body, body.thinking_budget, body.chat_template_kwargs or {})
    ignored += thinking.ignored
    parallel = body.parallel_tool_calls is not False and not body.functions
    ending = decode_ending(body.messages, body.continue_final_message, body.add_generation_prompt)
    prompt = ChatPrompt(messages, thinking.template_kwargs, tools, parallel, must_call, ending)
    job = GenerationJob(
        request_id=f"chatcmpl-{request_id}",
        model=body.model or "",
        prompts=(prompt,),
        names=CHAT_NAMES,
        n=body.n or 1,
        max_tokens=_decode_max_tokens(body),
        sampling=decode_sampling(body, _decode_num_logprobs(body)),
        stop=tuple(body.stop or ()),
        grammar=decode_grammar(body),
        thinking_budget=thinking.budget,
        needs_reasoning=thinking.is_budget_named,
        given=given_fields(body, _decode_max_tokens(body)),
        ignore_eos=bool(body.ignore_eos),
        min_tokens=body.min_tokens or 0,
        stop_token_ids=tuple(body.stop_token_ids or ()),
        dry_sequence_breakers=decode_breakers(body),
        bad_words=tuple(body.bad_words or ()),
        cache_salt=body.cache_salt or "",
        uses_prefix_cache=body.prefix_cache is not False,
        prediction=decode_prediction(body),
        speculates=body.speculation is not False,
        priority=decode_priority(body.priority, body.service_tier),
    )
    return job, ignored


def _check_template_kwargs(body: ChatRequest) -> None:
    for name in sorted(_RESERVED & (body.chat_template_kwargs or {}).keys()):
        message = f"'chat_template_kwargs' cannot have '{name}': the server says that to the template."
        raise InvalidRequest(message, param="chat_template_kwargs", code="invalid_value")


def decode_form(body: ChatRequest, thoughts_field: str) -> AnswerForm:
    """Return the form of the answer. `thoughts_field`: the configured name of the reasoning field."""
    names = _REASONING_NAMES.get(thoughts_field, (thoughts_field,))
    return AnswerForm(() if hides_reasoning(body) else names, is_old=bool(body.functions))


def _decode_functions(body: ChatRequest) -> tuple[tuple[Mapping[str, Any], ...], bool]:
    """Return the same as `_decode_tools`, from the older `functions` and `function_call`. Raises InvalidRequest."""
    if body.tools:
        raise InvalidRequest("'functions' and 'tools' cannot be combined.", param="functions", code="invalid_value")
    tools = tuple(_decode_tool(Tool(type="function", function=each)) for each in body.functions or ())
    if body.function_call in (None, "auto"):
        return tools, False
    if body.function_call == "none":
        return (), False
    name = body.function_call.get("name") if isinstance(body.function_call, Mapping) else None
    found = tuple(tool for tool in tools if tool["function"]["name"] == name)
    if not found:
        message = "'function_call' names none of 'functions'."
        raise InvalidRequest(message, param="function_call", code="invalid_value")
    return found, True


def _decode_tools(body: ChatRequest) -> tuple[tuple[Mapping[str, Any], ...], bool]:
    """Return the tools offered to the model, and whether it must call one. Raises InvalidRequest."""
    choice, tools = body.tool_choice, tuple(map(_decode_tool, body.tools or ()))
    if isinstance(choice, Mapping):
        choice = _CHOICES.get(str(choice.get("type")), choice)
    if choice in (None, "auto"):
        return tools, False
    if choice == "none":
        return (), False
    if not tools:
        raise InvalidRequest("'tool_choice' needs 'tools'.", param="tool_choice", code="invalid_value")
    return (tools if choice == "required" else _named(choice, tools)), True


def _named(choice: Any, tools: tuple[Mapping[str, Any], ...]) -> tuple[Mapping[str, Any], ...]:
    """Return the one tool that `choice` names. Raises InvalidRequest."""
    is_function = isinstance(choice, Mapping) and choice.get("type") == "function"
    function = choice.get("function", choice) if is_function else None  # the newer API has the name beside the type
    name = function.get("name") if isinstance(function, Mapping) else None
    found = tuple(tool for tool in tools if tool["function"]["name"] == name)
    if not found:
        raise InvalidRequest("'tool_choice' names none of 'tools'.", param="tool_choice", code="invalid_value")
    return found


def _decode_tool(tool: Tool) -> Mapping[str, Any]:
    """Return the tool in the field order of the API reference. Missing parameters become an empty object schema."""
    decoded = tool.model_dump(exclude_unset=True)
    decoded["function"]["parameters"] = tool.function.parameters or _NO_PARAMETERS
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
