"""Check the reasoning parameters that accept several types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
NEUTRAL_EFFORTS = ("default", "auto")
"""Efforts that keep the model's own."""


def check_thinking(value: Any) -> bool | dict[str, Any] | None:
    """Return a bool, or an object as in ThinkingObject. Raises ValueError."""
    if value is None or isinstance(value, bool):
        return value
    known = _object(value)
    if known.get("type") not in ("enabled", "disabled", "adaptive", "auto"):
        raise ValueError("its 'type' should be 'enabled', 'disabled', 'adaptive' or 'auto'")
    _check_number(known, "budget_tokens")
    _check_choice(known, "display", ("summarized", "omitted"))
    return known


def check_reasoning(value: Any) -> bool | dict[str, Any] | None:
    """Return a bool, or an object as in ReasoningObject. Raises ValueError."""
    if value is None or isinstance(value, bool):
        return value
    known = _object(value)
    _check_choice(known, "effort", (*EFFORTS, *NEUTRAL_EFFORTS))
    for name in ("enabled", "exclude"):
        if not isinstance(known.get(name), bool | None):
            raise ValueError(f"its '{name}' should be true or false")
    _check_number(known, "max_tokens")
    for name in ("summary", "generate_summary"):
        _check_choice(known, name, ("auto", "concise", "detailed"))
    return known


def check_think(value: Any) -> bool | str | None:
    """Return a bool or an effort, as Ollama accepts. Raises ValueError."""
    if value is None or isinstance(value, bool):
        return value
    if value in EFFORTS:
        return str(value)
    raise ValueError(f"Input should be true, false, or one of {', '.join(EFFORTS)}")


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("Input should be true, false or an object")
    return {name: each for name, each in value.items() if each is not None}


def _check_number(known: Mapping[str, Any], name: str) -> None:
    value = known.get(name, 0)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"its '{name}' should be a number of tokens")


def _check_choice(known: Mapping[str, Any], name: str, choices: tuple[str, ...]) -> None:
    if name in known and known[name] not in choices:
        raise ValueError(f"its '{name}' should be one of {', '.join(choices)}")
