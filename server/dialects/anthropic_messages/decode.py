"""Decoding of the body of `/v1/messages` to a job. Decides defaults and refusals; independent of answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlx_backend.api.interface import SamplingParams
from server.dialects.anthropic_messages.blocks import Ignored, invalid
from server.dialects.anthropic_messages.messages import decode_messages
from server.dialects.anthropic_messages.schema import MessagesRequest, OutputFormat, PromptFields
from server.dialects.anthropic_messages.tools import decode_tools
from server.dialects.openai_shared import check_extra
from server.service.job import ChatPrompt, GenerationJob, GrammarWish
from server.service.names import FieldNames
from server.text.grammar import GrammarSource

NAMES = FieldNames(prompt="messages", must_call="tool_choice", thinking_budget="thinking.budget_tokens")
UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "mcp_servers": ([],),
    "container": (),
    "compaction": (),
    "thread": (),
}
NO_EFFECT = frozenset(
    {
        *("metadata", "service_tier", "cache_control", "speed", "inference_geo", "diagnostics", "betas"),
        *("anthropic_beta", "anthropic_version", "user_profile_id", "workspace_id", "billing_policy"),
        *("fallbacks", "fallback_credit_token"),
    }
)
"""Fields accepted, and correctly without effect on what is generated."""
OF_MESSAGES = frozenset(MessagesRequest.model_fields)


def decode(body: MessagesRequest, request_id: str) -> tuple[GenerationJob, list[str]]:
    """Return the job, and the names of ignored fields. Raises InvalidRequest."""
    ignored = Ignored()
    if body.max_tokens == 0:
        _check_prefill(body)
    prompt, budget = decode_prompt(body, ignored)
    neutral = SamplingParams()
    job = GenerationJob(
        request_id=f"msg_{request_id}",
        model=body.model or "",
        prompts=(prompt,),
        names=NAMES,
        max_tokens=body.max_tokens,
        sampling=SamplingParams(
            temperature=neutral.temperature if body.temperature is None else body.temperature,
            top_p=body.top_p or neutral.top_p,
            top_k=1 if body.top_p == 0 else body.top_k or neutral.top_k,
        ),
        stop=tuple(body.stop_sequences or ()),
        given=_given(body),
        grammar=_decode_grammar(body),
        thinking_budget=budget,
        needs_reasoning=False,
    )
    return job, ignored.names


def _given(body: MessagesRequest) -> frozenset[str]:
    """Return the names of the fields given, among those with model defaults."""
    top_k = 1 if body.top_p == 0 else body.top_k
    values = {"temperature": body.temperature, "top_p": body.top_p, "top_k": top_k, "stop": body.stop_sequences}
    return frozenset({"max_tokens", *(name for name, value in values.items() if value is not None)})


def decode_prompt(body: PromptFields, ignored: Ignored) -> tuple[ChatPrompt, int | None]:
    """Return the prompt, and the token budget of reasoning. Raises InvalidRequest."""
    extra = {name: value for name, value in (body.model_extra or {}).items() if name not in OF_MESSAGES}
    ignored.names += check_extra(extra, UNSUPPORTED, NO_EFFECT)
    messages, ending = decode_messages(body.system, body.messages, ignored)
    tools, must_call = decode_tools(body.tools, body.tool_choice, ignored)
    _note_edits(body, ignored)
    kwargs, budget = _decode_thinking(body, ignored)
    parallel = body.tool_choice is None or not body.tool_choice.disable_parallel_tool_use
    if must_call and ending == "continued":
        message = "'tool_choice' cannot demand a call where the last message is continued."
        raise invalid("tool_choice", message)
    return ChatPrompt(messages, kwargs, tools, parallel, must_call, ending), budget


def _check_prefill(body: MessagesRequest) -> None:
    """Refuse fields that require an answer. Raises InvalidRequest."""
    for name, is_given in (
        ("stream", bool(body.stream)),
        ("thinking", body.thinking is not None and body.thinking.type == "enabled"),
        ("output_config.format", body.output_config is not None and body.output_config.format is not None),
        ("output_format", body.output_format is not None),
    ):
        if is_given:
            message = f"'max_tokens' is 0, which computes the prompt alone, and cannot be combined with '{name}'."
            raise invalid(name, message)


def hides_thinking(body: MessagesRequest) -> bool:
    """Return whether reasoning is omitted from the answer."""
    return body.thinking is not None and body.thinking.display == "omitted"


def _decode_thinking(body: PromptFields, ignored: Ignored) -> tuple[dict[str, Any], int | None]:
    """Return variables for the chat template, under the names that templates use, and the budget.

    Disabled reasoning has a budget of 0, because not every template has a switch.
    """
    kwargs: dict[str, Any] = {}
    thinking, config = body.thinking, body.output_config
    budget = None
    if thinking is not None:
        for name in thinking.model_extra or ():
            ignored.add(f"thinking.{name}")
        if thinking.type == "between_tools":
            ignored.add("thinking.type")
        budget = thinking.budget_tokens
        if thinking.type == "enabled":
            kwargs |= {} if budget is None else {"thinking_budget": budget}
    if config is not None:
        for name in config.model_extra or ():
            ignored.add(f"output_config.{name}")
        if config.effort is not None:
            kwargs["reasoning_effort"] = config.effort
    if thinking is not None and thinking.type in ("enabled", "disabled"):
        is_wanted = thinking.type == "enabled"
        kwargs |= {"enable_thinking": is_wanted, "thinking": is_wanted}
        budget = budget if is_wanted else 0
    return kwargs, budget


def _note_edits(body: PromptFields, ignored: Ignored) -> None:
    """Record edits of the context that would change the prompt; none is applied, which the answer also reports."""
    if body.context_management is None:
        return
    for edit in body.context_management.edits or ():
        is_nothing = edit.type == "clear_thinking_20251015" and edit.keep in ("all", {"type": "all"})
        if not is_nothing:
            ignored.add(f"context_management.{edit.type}")


def _decode_grammar(body: MessagesRequest) -> GrammarWish | None:
    in_config = body.output_config.format if body.output_config is not None else None
    if in_config is not None and body.output_format is not None:
        raise invalid("output_format", "'output_format' and 'output_config.format' cannot be combined.")
    for name, wanted in (("output_config.format", in_config), ("output_format", body.output_format)):
        if wanted is not None:
            return GrammarWish(_source(wanted), name)
    return None


def _source(wanted: OutputFormat) -> GrammarSource:
    return GrammarSource.of_schema(wanted.json_schema)
