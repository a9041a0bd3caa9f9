"""Data types of parsing: parts of an output, and a model's marks. Works on characters only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from server.text.calls.form import CallForm
from server.text.detokenizer import CONTROL_MARK

Tools = Sequence[Mapping[str, Any]]
"""Offered tools as passed to the chat template: `{"type": "function", "function": {"name": ..., ...}}`."""

Kind = Literal["content", "reasoning", "call"]

Start = Literal["before", "opened", "reasoning", "content"]
"""State in which an output begins: before anything, after a reasoning tag, within reasoning, within content."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call; `arguments` is a JSON object as text."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of the raw output, and its meaning.

    `size` counts its raw characters, including tags and white space that are in no text; for content it is the length
    of `text`.
    """

    kind: Kind
    text: str
    size: int
    calls: tuple[ToolCall, ...] = ()


class ReasoningHabit:
    """A record of a model's first answers: whether its reasoning comes without an opening tag.

    Some templates neither open nor mention reasoning, and the model still reasons from its first word to a closing tag.
    Only that tag identifies such an answer. So a model's first answers are held back for `num_held` characters; after
    two of them without reasoning, or one with reasoning that the model opened itself, none is. Once one such answer has
    been seen, an answer not marked otherwise begins as reasoning.
    """

    _MOST_HELD = 400
    _NUM_PLAIN = 2

    def __init__(self) -> None:
        self._num_plain = 0
        self.is_unopened = False

    @property
    def num_held(self) -> int:
        """Characters of an answer to hold back until they cannot be reasoning."""
        return self._MOST_HELD if self._num_plain < self._NUM_PLAIN else 0

    def note_plain(self) -> None:
        """Record an answer without reasoning."""
        self._num_plain += 1

    def note_opened(self) -> None:
        """Record reasoning that began with its opening tag."""
        self._num_plain = self._NUM_PLAIN

    def note_unopened(self) -> None:
        """Record reasoning that was closed without having been opened."""
        self.is_unopened = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatFormat:
    """A model's marks of reasoning and calls; None for marks it does not have."""

    think_start: str | None = None
    think_end: str | None = None
    calls: CallForm | None = None
    tells_tools: Literal["template", "with a system message", "prompt"] = "template"
    """Place of the tools' description: the model's template, in some only beside a system message, or the prompt."""
    frames: tuple[str, ...] = ()
    """Tags around content that are not part of it."""
    is_harmony: bool = False
    """Answers are messages with headers, as gpt-oss writes them; none of the above applies."""
    habit: ReasoningHabit = field(default_factory=ReasoningHabit, compare=False)

    @property
    def has_reasoning(self) -> bool:
        return self.is_harmony or bool(self.think_start and self.think_end)

    @property
    def has_tools(self) -> bool:
        return self.is_harmony or self.calls is not None


class OutputParser(Protocol):
    """Splits the text of one choice into parts. Boundaries aside, parts do not depend on how the text is cut."""

    @property
    def markup(self) -> tuple[str, ...]:
        """Strings that must be visible in the text, even as special tokens, for it to be parsed."""

    @property
    def done(self) -> bool:
        """Whether the rest of the output is irrelevant."""

    def feed(self, text: str) -> list[Part]:
        """Return the parts settled so far, in order; a part may lag behind `text`, never run ahead of it."""

    def flush(self, *, is_cut: bool = False) -> list[Part]:
        """Return the rest, at least one part; the sizes of all parts add up to the text.

        `is_cut`: the model had not finished, so closing marks missing at the end of its text are not tolerated.
        """


def markup_of(format: ChatFormat, *, has_tools: bool) -> tuple[str, ...]:
    """Return the strings that must be visible in a text, even as special tokens, for its parser."""
    calls = format.calls.markup if has_tools and format.calls is not None else ()
    control = (CONTROL_MARK,) if calls else ()
    return tuple(dict.fromkeys(filter(None, (format.think_start, format.think_end, *format.frames, *calls, *control))))
