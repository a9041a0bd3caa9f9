"""Detection of a model's marks of reasoning and calls, from its token names and its chat template."""

from __future__ import annotations

import re
from typing import Any, Literal

from server.text.calls.form import CallForm
from server.text.calls.forms import GENERIC, form_of
from server.text.parsers import harmony
from server.text.parsers.parts import ChatFormat

REASONING = (
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
)
"""Reasoning tags that mlx-lm does not detect: Magistral's, Seed-OSS's and Command A's."""

_KIMI_K3 = frozenset({"<|open|>", "<|close|>", "<|sep|>", "<|end_of_msg|>"})
_FRAMES = ("<|open|>response<|sep|>", "<|close|>response<|sep|>", "<|close|>message<|sep|>")
"""Tags around Kimi K3's content."""


def format_of(wrapper: Any) -> ChatFormat:
    """Return a model's answer format, given mlx-lm's wrapper of its tokenizer."""
    vocabulary = wrapper.get_vocab()
    if vocabulary.keys() >= {*harmony.TAGS}:
        return ChatFormat(is_harmony=True)
    think_start, think_end = _reasoning_tags(wrapper, vocabulary)
    calls = _calls_of(wrapper, vocabulary)
    return ChatFormat(
        think_start=think_start,
        think_end=think_end,
        calls=calls,
        tells_tools=_tells_tools(wrapper, calls),
        frames=_FRAMES if vocabulary.keys() >= _KIMI_K3 else (),
    )


def _calls_of(wrapper: Any, vocabulary: dict[str, int]) -> CallForm | None:
    """Return the family's form; for an unknown family with a chat template, the generic form."""
    parser = wrapper.tool_parser
    named = parser.__module__.rpartition(".")[2] if parser is not None else None
    own_template = getattr(getattr(wrapper, "_chat_template", None), "__module__", "") or ""
    named = named or own_template.rpartition(".")[2] or None
    form = form_of("\n".join(templates_of(wrapper)), vocabulary, named)
    if form is None and getattr(wrapper, "has_chat_template", False):
        return GENERIC
    return form


def _tells_tools(wrapper: Any, calls: CallForm | None) -> Literal["template", "with a system message", "prompt"]:
    if calls is None:
        return "template"
    if calls.name == "deepseek_v32":
        return "with a system message"
    templates = templates_of(wrapper)
    is_told = not templates or any(re.search(r"\btools\b", each) for each in templates)
    return "template" if is_told and not calls.own_words else "prompt"


def templates_of(wrapper: Any) -> list[str]:
    """Return the texts of the model's chat templates, which may be several."""
    template = getattr(wrapper, "chat_template", None)
    if isinstance(template, dict):
        return [str(each) for each in template.values()]
    return [template] if isinstance(template, str) else []


def _reasoning_tags(wrapper: Any, vocabulary: dict[str, int]) -> tuple[str | None, str | None]:
    if wrapper.think_start is not None:
        return wrapper.think_start, wrapper.think_end
    return next((pair for pair in REASONING if vocabulary.keys() >= {*pair}), (None, None))
