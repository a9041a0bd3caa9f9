"""Item: one conversation of the corpus, its skill, and the check of an answer to it. Imports nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Split = Literal["train", "test"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """A conversation whose last message is the assistant's.

    `messages` are OpenAI's: role, content, `reasoning_content` if the assistant reasons first, `tool_calls` if it calls
    a tool; `tools` are OpenAI's tool descriptions. All assistant messages are trained on, those of user and system are
    not.
    """

    skill: str
    messages: tuple[Mapping[str, Any], ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    enable_thinking: bool = True
    is_right: Callable[[str], bool] | None = None
    """Check of an answer to all messages except the last; None if there is nothing to check.

    Its text is the content without any `<think>…</think>`, a tool call as `<tool_call>…</tool_call>`.
    """
