"""Positions at which another prompt may diverge from this one: after the system prompt, after the last turn.

Works on messages, the chat template and tokens. It finds a border by rendering other conversations and comparing how
far the prompts agree, so it needs no knowledge of the template. A wrong border only costs time.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from threading import Lock
from typing import Any

from server.text.chat_template import Ending, TemplateError, render_text
from server.text.tokenizer import Tokenizer

Message = Mapping[str, Any]

_MOST_SYSTEM_PROMPTS = 64
_QUESTIONS = ("x", "y")
"""Two user messages with no common prefix."""


@dataclass(frozen=True, slots=True)
class Borders:
    """Number of tokens of the system prompt and tools (0: none), and all positions worth a snapshot, ascending."""

    system: int = 0
    positions: tuple[int, ...] = ()


class BorderFinder:
    """Finds the borders of one model's chats and caches system prompts. Thread-safe."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._lock = Lock()
        self._system_prompts: OrderedDict[bytes, tuple[int, ...]] = OrderedDict()

    def find(
        self,
        ids: Sequence[int],
        messages: Sequence[Message],
        template_kwargs: Mapping[str, Any],
        tools: Sequence[Mapping[str, Any]] = (),
        ending: Ending = "answer",
        *,
        with_positions: bool = False,
    ) -> Borders:
        """Return the borders within a chat's prompt `ids`; without `with_positions`, only the system prompt's.

        If the template refuses what is rendered, there is no border.
        """
        system = num_common(self._system_prompt(messages, template_kwargs, tools), ids)
        if not with_positions:
            return Borders(system)
        turn = num_common(self._last_turn(messages, template_kwargs, tools, ending), ids)
        return Borders(system, tuple(border for border in sorted({system, turn}) if 0 < border < len(ids)))

    @cached_property
    def forgets(self) -> bool:
        """Whether a turn with calls renders differently after a further question, for example without its reasoning."""
        call = {"id": "000000000", "type": "function", "function": {"name": "x", "arguments": {}}}
        result = {"role": "tool", "content": "x", "name": "x", "tool_call_id": "000000000"}
        for thought in ({}, {"reasoning_content": "x"}):
            called = {"role": "assistant", "content": "x", "tool_calls": [call], **thought}
            turn: list[Message] = [{"role": "user", "content": "x"}, called, result]
            later: list[Message] = [*turn, {"role": "assistant", "content": "x"}, {"role": "user", "content": "x"}]
            now, then = (self._encode(each, {}, (), opens_answer=False) for each in (turn, later))
            if num_common(now, then) < len(now):
                return True
        return False

    def find_next(
        self,
        messages: Sequence[Message],
        answer: Message,
        template_kwargs: Mapping[str, Any],
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> list[int]:
        """Return the tokens common to all prompts that continue this answer with another question."""
        asked = [[*messages, answer, {"role": "user", "content": question}] for question in _QUESTIONS]
        one, other = (self._encode(each, template_kwargs, tools, opens_answer=True) for each in asked)
        return one[: num_common(one, other)]

    def _system_prompt(
        self, messages: Sequence[Message], kwargs: Mapping[str, Any], tools: Sequence[Mapping[str, Any]]
    ) -> tuple[int, ...]:
        """Return the tokens common to all conversations with the same system messages and tools."""
        system = _leading_system(messages)
        if not system and not tools:
            return ()
        key = _key(system, kwargs, tools)
        with self._lock:
            known = self._system_prompts.get(key)
            if known is not None:
                self._system_prompts.move_to_end(key)
                return known
        found = self._render_system(system, kwargs, tools)
        with self._lock:
            self._system_prompts[key] = found
            while len(self._system_prompts) > _MOST_SYSTEM_PROMPTS:
                self._system_prompts.popitem(last=False)
        return found

    def _render_system(
        self, system: Sequence[Message], kwargs: Mapping[str, Any], tools: Sequence[Mapping[str, Any]]
    ) -> tuple[int, ...]:
        asked = [[*system, {"role": "user", "content": question}] for question in _QUESTIONS]
        one, other = (self._encode(messages, kwargs, tools, opens_answer=True) for messages in asked)
        return tuple(one[: num_common(one, other)])

    def _last_turn(
        self,
        messages: Sequence[Message],
        kwargs: Mapping[str, Any],
        tools: Sequence[Mapping[str, Any]],
        ending: Ending,
    ) -> list[int]:
        """Return the tokens up to where an answer begins, or up to the message that is continued."""
        whole = messages[:-1] if ending == "continued" else messages
        return self._encode(whole, kwargs, tools, opens_answer=False)

    def _encode(
        self,
        messages: Sequence[Message],
        kwargs: Mapping[str, Any],
        tools: Sequence[Mapping[str, Any]],
        *,
        opens_answer: bool,
    ) -> list[int]:
        """Return the prompt's tokens; empty if the template refuses."""
        try:
            text = render_text(self._tokenizer, messages, kwargs, tools, add_generation_prompt=opens_answer)
        except TemplateError:
            return []
        return self._tokenizer.encode(text, add_special_tokens=False)


def num_common(one: Sequence[int], other: Sequence[int]) -> int:
    """Return the length of the common prefix."""
    most = min(len(one), len(other))
    return next((place for place in range(most) if one[place] != other[place]), most)


def _leading_system(messages: Sequence[Message]) -> tuple[Message, ...]:
    count = next((place for place, each in enumerate(messages) if each.get("role") != "system"), len(messages))
    return tuple(messages[:count])


def _key(system: Sequence[Message], kwargs: Mapping[str, Any], tools: Sequence[Mapping[str, Any]]) -> bytes:
    """Return a digest of what a system prompt is rendered from, including the date, because some templates write it.

    The order of keys is kept because templates show it.
    """
    content = json.dumps([date.today().toordinal(), list(system), dict(kwargs), list(tools)], default=repr)
    return hashlib.blake2b(content.encode(), digest_size=16).digest()
