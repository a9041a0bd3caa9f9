"""Rendering of conversations with a model's own chat template, adapted to the nearest form it accepts.

Owns the traits detected for the template. Uses mlx-lm's tokenizer wrapper; handles no tokens.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from server.text.calls.forms import GENERIC
from server.text.calls.telling import describe_tools
from server.text.calls.writer import write_calls
from server.text.conversation import Traits, prepare
from server.text.parsers.parts import ChatFormat
from server.text.template_traits import find_traits

logger = logging.getLogger("pippin.template")

Messages = Sequence[Mapping[str, Any]]
_WITH_TOOLS = "tool_use"
"""Name of the template that supports tools, if a model has several."""


class ChatRenderer:
    """Renders one model's conversations. Thread-safe."""

    def __init__(self, wrapper: Any, chat_format: ChatFormat) -> None:
        self._wrapper, self._format = wrapper, chat_format
        self._said: set[str] = set()

    def render(self, messages: Messages, template_kwargs: Mapping[str, Any], tools: Sequence[Mapping[str, Any]]) -> str:
        """Return the prompt. Raises what the template raises, and ValueError if the model has none."""
        if not self._wrapper.has_chat_template:
            raise ValueError("the model has none; ask for a plain completion")
        prepared, changes = prepare(messages, self._traits, self._write_calls, self._told(tools))
        for change in changes:
            self._log(change)
        offers = bool(tools) and self._format.tells_tools != "prompt"
        offered = {"tools": [dict(tool) for tool in tools]} if offers else {}
        return self._apply(prepared, {**offered, **template_kwargs})

    @cached_property
    def _traits(self) -> Traits:
        return find_traits(lambda messages: self._apply(messages, {}))

    def _write_calls(self, calls: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
        return write_calls(self._format.calls or GENERIC, calls)

    def _told(self, tools: Sequence[Mapping[str, Any]]) -> str | None:
        """Return the tools as text for the system message; None if the template needs no such text."""
        if not tools or self._format.tells_tools == "template":
            return None
        form = self._format.calls
        return describe_tools(form, tools) if form and self._format.tells_tools == "prompt" else ""

    def _log(self, change: str) -> None:
        if change not in self._said:  # once: an agent sends such a conversation repeatedly
            self._said.add(change)
            logger.warning("the chat template %s", change)

    def _apply(self, conversation: list[dict[str, Any]], template_kwargs: Mapping[str, Any]) -> str:
        given = {"add_generation_prompt": True, **template_kwargs}
        template = self._template_of(conversation, given.get("tools"))
        if all(message.get("content", "") is not None for message in conversation):
            chosen = {} if template is None else {"chat_template": template}
            return str(self._wrapper.apply_chat_template(conversation, tokenize=False, **chosen, **given))
        # transformers would drop the key, and a template that tests whether the content is none would not find it
        from transformers.utils.chat_template_utils import render_jinja_template

        tools = given.pop("tools", None)
        template = template or self._wrapper.get_chat_template(None, tools)
        given = {**self._wrapper.special_tokens_map, **given}
        return str(render_jinja_template([conversation], tools=tools, chat_template=template, **given)[0][0])

    def _template_of(self, conversation: Sequence[Mapping[str, Any]], tools: Any) -> str | None:
        """Return the template, of several, that a conversation needs; None for the default."""
        templates = getattr(self._wrapper, "chat_template", None)
        if not isinstance(templates, dict):
            return None
        knows_calls = any(message.get("tool_calls") or message.get("role") == "tool" for message in conversation)
        if (tools or knows_calls) and _WITH_TOOLS in templates:
            return str(templates[_WITH_TOOLS])
        return None if "default" in templates else str(next(iter(templates.values())))
