"""Decoding of the body of `/v1/responses` to a job. Decides defaults and refusals; of answers, only their form."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlx_backend.api.interface import Priority, SamplingParams
from server.dialects.openai_grammar import decode_grammar
from server.dialects.openai_names import RESPONSES_NAMES
from server.dialects.openai_responses.encode import AnswerForm
from server.dialects.openai_responses.items import Item, decode_items
from server.dialects.openai_responses.reading import check_writable, read_text, refuse
from server.dialects.openai_responses.schema import ResponsesRequest, TextOptions
from server.dialects.openai_responses.tools import Toolbox, choose, decode_tools
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
from server.dialects.openai_written import dump
from server.dialects.priorities import decode_priority, tier_of
from server.errors import InvalidRequest, UnsupportedParameter
from server.request_defaults import RequestDefaults
from server.service.defaults import NO_DEFAULTS, with_sampling
from server.service.job import ChatPrompt, GenerationJob, GrammarWish
from server.text.grammar import ANY_OBJECT, GrammarSource

_UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    **UNSUPPORTED,
    "best_of": (1,),
    "audio": (),
    "modalities": (["text"],),
    "conversation": (),
    "prompt": (),
    "logprobs": (False,),
    "tool_resources": ({},),
}
_NO_EFFECT = NO_EFFECT | {"client_metadata", "prompt_cache_options", "context_management", "moderation"}
LOGPROBS = "message.output_text.logprobs"
SEALED = "reasoning.encrypted_content"


@dataclass(frozen=True, slots=True)
class Decoded:
    """A job, the form of its answer, and the names of ignored fields."""

    job: GenerationJob
    form: AnswerForm
    ignored: list[str]


def read_input(body: ResponsesRequest) -> list[Item]:
    """Return the items of the request. Raises InvalidRequest."""
    if body.input is None and body.previous_response_id is None:
        raise InvalidRequest("The parameter 'input' is required.", param="input", code="missing_required_parameter")
    if isinstance(body.input, str):
        return [{"type": "message", "role": "user", "content": body.input}]
    return list(body.input or ())


def decode(
    body: ResponsesRequest,
    before: Sequence[Item],
    sent: Sequence[Item],
    *,
    request_id: str,
    key: str,
    stores: bool,
    shows_thoughts: bool = True,
    defaults: RequestDefaults = NO_DEFAULTS,
    allow: Callable[[Priority], Priority] = lambda priority: priority,
) -> Decoded:
    """Decode a request. Raises InvalidRequest.

    `before`: the items of the responses that led to this one; `sent`: those of the request. `defaults`: the model's,
    some of which the answer repeats. `allow`: returns the class granted for the requested one.
    """
    ignored = check_extra(body.model_extra or {}, _UNSUPPORTED, _NO_EFFECT) + check_stream_options(body)
    _check_refused(body)
    _check_nested(body, ignored)
    box = decode_tools(body.tools or ())
    ignored += box.dropped
    offered, must_call = choose(body.tool_choice, box)
    messages, ignored_of_items = decode_items([*before, *sent], len(before), box)
    ignored += ignored_of_items
    if body.instructions:
        messages = ({"role": "system", "content": body.instructions}, *messages)
    if not messages:
        refuse("input", "it has no message")
    prompt = ChatPrompt(
        messages,
        _template_kwargs(body),
        tuple(tool.neutral for tool in offered),
        body.parallel_tool_calls is not False,
        must_call,
    )
    sampling, given = decode_sampling(body, _num_logprobs(body)), given_fields(body, _max_tokens(body))
    shown = with_sampling(sampling, given, defaults)
    job = GenerationJob(
        request_id=f"resp-{request_id}",
        model=body.model or "",
        prompts=(prompt,),
        names=RESPONSES_NAMES,
        max_tokens=_max_tokens(body),
        sampling=sampling,
        stop=tuple(body.stop or ()),
        grammar=_decode_grammar(body),
        thinking_budget=0 if body.reasoning is not None and body.reasoning.effort == "none" else None,
        needs_reasoning=False,
        given=given,
        ignore_eos=bool(body.ignore_eos),
        min_tokens=body.min_tokens or 0,
        stop_token_ids=tuple(body.stop_token_ids or ()),
        dry_sequence_breakers=decode_breakers(body),
        bad_words=tuple(body.bad_words or ()),
        cache_salt=body.cache_salt or "",
        uses_prefix_cache=body.prefix_cache is not False,
        prediction=decode_prediction(body),
        speculates=body.speculation is not False,
        priority=allow(decode_priority(body.priority, body.service_tier)),
    )
    include = body.include or ()
    form = AnswerForm(
        key,
        box,
        _echo(body, box, stores, shown, job.priority),
        shows_thoughts=shows_thoughts,
        as_summary=_summary(body) is not None,
        seals_thoughts=SEALED in include,
    )
    return Decoded(job, form, list(dict.fromkeys(ignored)))


def _check_refused(body: ResponsesRequest) -> None:
    if body.background:
        message = "'background' is not supported: an answer is computed while its client waits."
        raise UnsupportedParameter("background", message)
    if body.n not in (None, 1):
        raise UnsupportedParameter("n")


def _check_nested(body: ResponsesRequest, ignored: list[str]) -> None:
    for name, options in (("text", body.text), ("reasoning", body.reasoning)):
        if options is not None:
            ignored += [f"{name}.{each}" for each in options.model_extra or ()]


def _summary(body: ResponsesRequest) -> str | None:
    return None if body.reasoning is None else body.reasoning.summary or body.reasoning.generate_summary


def _template_kwargs(body: ResponsesRequest) -> Mapping[str, Any]:
    kwargs: dict[str, Any] = {}
    effort = None if body.reasoning is None else body.reasoning.effort
    if effort is not None:
        thinks = effort != "none"
        # some templates use one name, some another
        kwargs |= {"reasoning_effort": effort, "enable_thinking": thinks, "thinking": thinks}
    if body.text is not None and body.text.verbosity is not None:
        kwargs["verbosity"] = body.text.verbosity
    return kwargs


def _max_tokens(body: ResponsesRequest) -> int | None:
    new, old = body.max_output_tokens, body.max_tokens
    if new is not None and old is not None and new != old:
        message = "'max_tokens' and 'max_output_tokens' are both set, and differ."
        raise InvalidRequest(message, param="max_output_tokens", code="invalid_value")
    return old if new is None else new


def _num_logprobs(body: ResponsesRequest) -> int | None:
    return body.top_logprobs or 0 if body.top_logprobs or LOGPROBS in (body.include or ()) else None


def _decode_grammar(body: ResponsesRequest) -> GrammarWish | None:
    wish, source = decode_grammar(body), _of_format(body.text)
    if wish is not None and source is not None:
        message = f"'{wish.param}' and 'text.format' cannot be combined."
        raise InvalidRequest(message, param="text.format", code="invalid_value")
    return wish if source is None else GrammarWish(source, "text.format")


def _of_format(text: TextOptions | None) -> GrammarSource | None:
    format = None if text is None else text.format
    if format is None:
        return None
    kind = read_text(format, "type", "text.format")
    if kind == "text":
        return None
    if kind == "json_object":
        return ANY_OBJECT
    if kind != "json_schema":
        refuse("text.format.type", "Input should be 'text', 'json_object' or 'json_schema'")
    read_text(format, "name", "text.format")
    schema = format.get("schema")
    if not isinstance(schema, Mapping):
        refuse("text.format.schema", "Input should be an object")
    return GrammarSource.of_schema(schema)


def _echo(body: ResponsesRequest, box: Toolbox, stores: bool, shown: SamplingParams, priority: Priority) -> str:
    """Return the fields that a response repeats, as JSON without brackets. Raises InvalidRequest."""
    text, reasoning = body.text or TextOptions(), body.reasoning
    fields: dict[str, Any] = {
        "background": False,
        "instructions": body.instructions,
        "max_output_tokens": _max_tokens(body),
        "max_tool_calls": body.max_tool_calls,
        "metadata": body.metadata or {},
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "prompt_cache_key": body.prompt_cache_key,
        "reasoning": {"effort": None if reasoning is None else reasoning.effort, "summary": _summary(body)},
        "safety_identifier": body.safety_identifier,
        "service_tier": tier_of(priority),
        "store": stores,
        "temperature": shown.temperature,
        "text": {"format": text.format or {"type": "text"}, "verbosity": text.verbosity or "medium"},
        "tool_choice": body.tool_choice or "auto",
        "tools": box.echo,
        "top_logprobs": body.top_logprobs or 0,
        "top_p": shown.top_p,
        "truncation": body.truncation or "disabled",
        "user": body.user,
    }
    check_writable(fields.items())
    return dump(fields)[1:-1]
