"""Item: one conversation of the corpus, what it teaches, and how an answer to it is judged. Imports nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Split = Literal["train", "test"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """A conversation whose last message is the assistant's.

    `messages` are OpenAI's: role, content, `reasoning_content` where the assistant thinks first,
    `tool_calls` where it calls a tool; `tools` are OpenAI's tool descriptions. All assistant messages are
    trained on, the user's and system's are not.
    """

    skill: str
    messages: tuple[Mapping[str, Any], ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    enable_thinking: bool = True
    is_right: Callable[[str], bool] | None = None
    """Judges the text of an answer to all messages but the last: content with any `<think>…</think>` removed,
    a tool call as `<tool_call>…</tool_call>`. None where nothing is to be judged."""
