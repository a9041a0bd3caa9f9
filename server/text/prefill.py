"""Prompts that make the answer continue the last message, and where in that message the answer begins.

The text to be continued never passes through the template, which might trim it or remove its reasoning: the template
renders a mark in its place, and everything before the mark is the beginning of the prompt. Handles the tags of
reasoning, not tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from server.text.chat_template import Ending, TemplateError, render_text
from server.text.parsers.chat import opens_reasoning
from server.text.parsers.parts import ChatFormat, Start, Tools
from server.text.tokenizer import Tokenizer

_MARK = "\N{WHITE SQUARE}continued-from-here\N{WHITE SQUARE}"


@dataclass(frozen=True, slots=True)
class Rendered:
    """A prompt, and where the answer to it begins."""

    text: str
    begins: Start


@dataclass(frozen=True, slots=True)
class _Given:
    """Parsed beginning of the last message. `reasoning` None: none; not `is_closed`: the reasoning continues."""

    reasoning: str | None
    said: str
    is_closed: bool = True


def render_prompt(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    template_kwargs: Mapping[str, Any],
    tools: Tools = (),
    ending: Ending = "answer",
) -> Rendered:
    """Return the prompt of a conversation. Raises TemplateError."""

    def render(some: Sequence[Mapping[str, Any]], *, opens_answer: bool) -> str:
        return render_text(tokenizer, some, template_kwargs, tools, add_generation_prompt=opens_answer)

    marks = tokenizer.chat_format
    if ending != "continued":
        text = render(messages, opens_answer=ending == "answer")
        return Rendered(text, "opened" if ending == "answer" and opens_reasoning(marks, text) else "before")
    *earlier, last = messages
    given = _given(last, marks)
    if given.is_closed:
        prompt = _continue_content(render([*earlier, _marked(last, given)], opens_answer=False), given, marks)
        if prompt is not None:
            return prompt
    return _write_reasoning(render(earlier, opens_answer=True), given, marks)


def _given(last: Mapping[str, Any], marks: ChatFormat) -> _Given:
    """Split the last message into reasoning and content; tagged reasoning within the content counts as reasoning."""
    said, reasoning = str(last.get("content") or ""), last.get("reasoning_content")
    if reasoning:
        return _Given(str(reasoning), said, is_closed=bool(said))
    if marks.think_start and marks.think_end and said.lstrip().startswith(marks.think_start):
        reasoning, tag, said = said.lstrip().removeprefix(marks.think_start).partition(marks.think_end)
        return _Given(reasoning.lstrip("\n"), said.lstrip("\n"), is_closed=bool(tag))
    return _Given(None, said)


def _marked(last: Mapping[str, Any], given: _Given) -> dict[str, Any]:
    others = {name: value for name, value in last.items() if name != "reasoning_content"}
    reasoning = {} if given.reasoning is None else {"reasoning_content": given.reasoning}
    return {**others, "content": _MARK, **reasoning}


def _continue_content(rendered: str, given: _Given, marks: ChatFormat) -> Rendered | None:
    """Return the prompt that continues the content; None if the template omitted the reasoning or the whole message."""
    header, mark, _ = rendered.rpartition(_MARK)
    if not mark:
        raise TemplateError("the chat template does not show the last message, so it cannot be continued")
    if given.reasoning is not None and given.reasoning.strip() not in header:
        return None
    if opens_reasoning(marks, header):
        return Rendered(header + given.said, "reasoning" if given.said else "opened")
    is_begun = bool(given.said) or given.reasoning is not None or _closes_reasoning(header, marks)
    return Rendered(header + given.said, "content" if is_begun else "before")


def _closes_reasoning(header: str, marks: ChatFormat) -> bool:
    """Return whether only content can follow the header."""
    return marks.is_harmony or (marks.think_end is not None and header.rstrip().endswith(marks.think_end))


def _write_reasoning(opening: str, given: _Given, marks: ChatFormat) -> Rendered:
    """Append the reasoning and the content, with the model's own tags, where an answer begins."""
    if not marks.think_start or not marks.think_end:
        raise TemplateError("the model marks no thoughts, so the last message's cannot be continued")
    reasoning = given.reasoning or ""
    text = (opening if opens_reasoning(marks, opening) else f"{opening}{marks.think_start}\n") + reasoning
    if given.is_closed:
        return Rendered(f"{text.rstrip()}\n{marks.think_end}\n\n{given.said}", "content")
    return Rendered(text, "reasoning" if reasoning.strip() else "opened")
