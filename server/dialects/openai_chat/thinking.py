"""Read whether and how much a model should reason, in all the forms that clients use.

A request may combine several forms that do not contradict each other. Handles names and values; independent of models.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from server.dialects.openai_chat.schema import ReasoningObject, ThinkingFields, ThinkingObject
from server.dialects.openai_chat.thinking_checks import NEUTRAL_EFFORTS
from server.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class ThinkingWish:
    """Reasoning settings of a request. `budget`: tokens; `is_budget_named`: set by `thinking_budget` itself."""

    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    budget: int | None = None
    is_budget_named: bool = False
    ignored: tuple[str, ...] = ()
    """Names of ignored fields within the objects."""


def decode_thinking(fields: ThinkingFields, budget: int | None, stronger: Mapping[str, Any]) -> ThinkingWish:
    """Combine all reasoning fields into one wish. Raises InvalidRequest if two contradict each other.

    `budget`: the value of `thinking_budget`. `stronger`: the other arguments of the chat template, which take
    precedence. Disabled reasoning has a budget of 0, because not every template has a switch.
    """
    thinking, reasoning = _as_object(fields.thinking), _as_object(fields.reasoning)
    thinks = _agreed(_votes(fields))
    effort = _agreed(_efforts(fields, reasoning))
    budgets = (
        ("thinking_budget", budget),
        ("thinking.budget_tokens", thinking.get("budget_tokens")),
        ("reasoning.max_tokens", reasoning.get("max_tokens")),
    )
    wanted = _agreed(budgets)
    kwargs: dict[str, Any] = {}
    if wanted is not None:
        kwargs["thinking_budget"] = wanted  # some templates pass it to the model
    if effort is not None:
        kwargs["reasoning_effort"] = effort
    if thinks is not None:
        kwargs |= {"enable_thinking": thinks, "thinking": thinks}  # templates use either name
    if fields.verbosity is not None:
        kwargs["verbosity"] = fields.verbosity
    kwargs |= stronger
    said = (kwargs.get("enable_thinking"), kwargs.get("thinking"))
    is_off = any(each is False for each in said) and True not in said
    ignored = [f"thinking.{name}" for name in thinking.keys() - ThinkingObject.model_fields.keys()]
    ignored += [f"reasoning.{name}" for name in reasoning.keys() - ReasoningObject.model_fields.keys()]
    return ThinkingWish(kwargs, 0 if is_off else wanted, budget is not None, tuple(ignored))


def hides_reasoning(fields: ThinkingFields) -> bool:
    """Return whether the answer leaves the reasoning out."""
    return (
        fields.include_reasoning is False
        or bool(_as_object(fields.reasoning).get("exclude"))
        or _as_object(fields.thinking).get("display") == "omitted"
        or fields.reasoning_format == "hidden"
    )


def _as_object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _efforts(fields: ThinkingFields, reasoning: Mapping[str, Any]) -> Iterator[tuple[str, str | None]]:
    given = (
        ("reasoning_effort", fields.reasoning_effort),
        ("reasoning.effort", reasoning.get("effort")),
        ("think", fields.think if isinstance(fields.think, str) else None),
    )
    yield from ((name, None if effort in NEUTRAL_EFFORTS else effort) for name, effort in given)


def _votes(fields: ThinkingFields) -> Iterator[tuple[str, bool | None]]:
    """Yield (parameter, whether it enables reasoning); None is no vote."""
    thinking, reasoning = fields.thinking, fields.reasoning
    yield "enable_thinking", fields.enable_thinking
    yield "thinking", {"enabled": True, "disabled": False}.get(_as_object(thinking).get("type", ""))
    yield "thinking", thinking if isinstance(thinking, bool) else None
    yield "reasoning.enabled", _as_object(reasoning).get("enabled")
    yield "reasoning", reasoning if isinstance(reasoning, bool) else None
    yield "think", fields.think if isinstance(fields.think, bool) else None
    for name, effort in _efforts(fields, _as_object(reasoning)):
        yield name, None if effort is None else effort != "none"


def _agreed(given: Iterable[tuple[str, Any]]) -> Any:
    """Return the one value that is set, or None. Raises InvalidRequest if two values differ."""
    said = [(name, value) for name, value in given if value is not None]
    for name, value in said[1:]:
        if value != said[0][1]:
            raise InvalidRequest(
                f"'{said[0][0]}' and '{name}' contradict each other.", param=name, code="invalid_value"
            )
    return said[0][1] if said else None
