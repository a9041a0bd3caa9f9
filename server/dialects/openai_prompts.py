"""Forms of a prompt on the wire: a string, a list of strings, token ids, a list of lists of token ids."""

from __future__ import annotations

from typing import Any

from server.dialects.openai_shared import check_text

MAX_PROMPTS = 2048
"""Limit per request."""

PromptInput = str | list[str] | list[int] | list[list[int]]


def check_prompt(value: Any) -> PromptInput:
    """Return one of the four forms, none empty, of at most MAX_PROMPTS prompts. Raises ValueError."""
    if isinstance(value, str):
        return check_text(value)
    if not isinstance(value, list):
        raise ValueError("Input should be a string, a list of strings, a list of token ids or a list of such lists")
    if not value:
        raise ValueError("the list must not be empty")
    if not isinstance(value[0], int) and len(value) > MAX_PROMPTS:
        raise ValueError(f"there may be at most {MAX_PROMPTS} of them, not {len(value)}")
    if all(isinstance(item, str) for item in value):
        return [check_text(item) for item in value]
    if _are_ids(value) or all(isinstance(item, list) and _are_ids(item) for item in value):
        return value
    raise ValueError("the list must hold strings, or token ids, or lists of token ids, and one kind only")


def is_one(prompts: PromptInput) -> bool:
    """Return whether the input is one prompt instead of a list of prompts."""
    return isinstance(prompts, str) or isinstance(prompts[0], int)


def _are_ids(items: list[Any]) -> bool:
    return all(type(item) is int for item in items)  # excludes bool
