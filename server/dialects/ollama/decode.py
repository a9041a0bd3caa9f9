"""Decoding of the bodies of `/api/chat` and `/api/generate` to a job. Decides refusals; independent of answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from server.dialects.ollama.messages import check_images, decode_ending, decode_messages
from server.dialects.ollama.options import decode_max_tokens, decode_options
from server.dialects.ollama.schema import ChatRequest, GenerateRequest, GenerationBody, Tool
from server.errors import InvalidRequest, UnsupportedParameter
from server.service.job import ChatPrompt, GenerationJob, GrammarWish, InfillPrompt, Prompt, TextPrompt
from server.service.names import FieldNames
from server.text.grammar import ANY_OBJECT, GrammarSource

CHAT_NAMES = FieldNames(prompt="messages", num_logprobs="logprobs")
GENERATE_NAMES = FieldNames(prompt="prompt", num_logprobs="logprobs")
_NO_PARAMETERS = {"type": "object", "properties": {}}


def decode_chat(body: ChatRequest, model: str, request_id: str) -> tuple[GenerationJob, list[str]]:
    """Return the job, and the names of ignored fields. Raises InvalidRequest."""
    given = body.messages or []
    messages, ignored = decode_messages(given)
    tools = tuple(map(_decode_tool, body.tools or ()))
    prompt = ChatPrompt(messages, _template_kwargs(body.think), tools, ending=decode_ending(given))
    job, others = _job(body, model, f"chat-{request_id}", prompt, CHAT_NAMES)
    return job, ignored + others


def decode_generate(body: GenerateRequest, model: str, request_id: str) -> tuple[GenerationJob, list[str]]:
    """Return the job, and the names of ignored fields. Raises InvalidRequest."""
    check_images(body.images, "images")
    if body.template:
        message = "'template': the model's own is used; write the whole prompt with 'raw' to go without it."
        raise UnsupportedParameter("template", message)
    if body.context:
        message = "'context': this server keeps no conversation as token ids; send its messages to /api/chat."
        raise UnsupportedParameter("context", message)
    return _job(body, model, f"generate-{request_id}", _prompt(body), GENERATE_NAMES)


def _prompt(body: GenerateRequest) -> Prompt:
    text = body.prompt or ""
    if body.raw and (body.system or body.suffix):
        name = "system" if body.system else "suffix"
        raise InvalidRequest(f"'raw' and '{name}' cannot be combined.", param=name, code="invalid_value")
    if body.raw:
        return TextPrompt(text)
    if body.suffix:
        return InfillPrompt(text, body.suffix)
    system = [{"role": "system", "content": body.system}] if body.system else []
    return ChatPrompt((*system, {"role": "user", "content": text}), _template_kwargs(body.think))


def _job(
    body: GenerationBody, model: str, id: str, prompt: Prompt, names: FieldNames
) -> tuple[GenerationJob, list[str]]:
    sampling, given, ignored = decode_options(body.options, _num_logprobs(body))
    job = GenerationJob(
        request_id=id,
        model=model,
        prompts=(prompt,),
        names=names,
        max_tokens=decode_max_tokens(body.options),
        sampling=sampling,
        stop=tuple((body.options and body.options.stop) or ()),
        given=given,
        grammar=_grammar(body.format),
        thinking_budget=0 if body.think in (False, "none") and isinstance(prompt, ChatPrompt) else None,
        needs_reasoning=False,
    )
    return job, [*(body.model_extra or {}), *ignored]


def _template_kwargs(think: bool | str | None) -> Mapping[str, Any]:
    """Return variables for the chat template, under the names that templates use."""
    if think is None:
        return {}
    thinks = think not in (False, "none")
    effort = {"reasoning_effort": think} if isinstance(think, str) else {}
    return {**effort, "enable_thinking": thinks, "thinking": thinks}


def _grammar(format: str | dict[str, Any] | None) -> GrammarWish | None:
    if format is None:
        return None
    return GrammarWish(GrammarSource.of_schema(format) if isinstance(format, dict) else ANY_OBJECT, "format")


def _decode_tool(tool: Tool) -> Mapping[str, Any]:
    function = {"parameters": _NO_PARAMETERS, **tool.function.model_dump(exclude_none=True)}
    names = ("name", "description", "parameters")
    return {"type": "function", "function": {name: function[name] for name in names if name in function}}


def _num_logprobs(body: GenerationBody) -> int | None:
    if body.logprobs:
        return body.top_logprobs or 0
    if body.top_logprobs:
        raise InvalidRequest("'top_logprobs' needs 'logprobs' to be true.", param="top_logprobs", code="invalid_value")
    return None
