"""The nouns of parsing: what a stretch of output is, and how a model marks what it writes.

Knows characters only: no tokens, no tokenizer, no dialect.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from server.text.calls.form import CallForm
from server.text.detokenizer import CONTROL_MARK

Tools = Sequence[Mapping[str, Any]]
"""The tools offered, as the chat template gets them: `{"type": "function", "function": {"name": ..., ...}}`."""

Kind = Literal["content", "reasoning", "call"]

Start = Literal["before", "opened", "reasoning", "content"]
"""Where an output begins: before anything, behind a thought's opening tag, within a thought, within content."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call; `arguments` is the JSON of an object."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of the raw output, and what it means.

    `size` counts the raw characters it stands for, tags and white space among them that are in no text;
    of content it is the length of `text`.
    """

    kind: Kind
    text: str
    size: int
    calls: tuple[ToolCall, ...] = ()


class ReasoningHabit:
    """A record of a model's first answers: whether its thoughts come without an opening tag.

    Some templates neither open a thought nor say anything of one, and the model thinks all the same, from its first
    word to a closing tag. Such an answer is known for what it is only at that tag. So the first answers of a model are
    held back, as far as `num_held` says; after two of them without a thought, or one whose thought the model has opened
    itself, none is. Once one such thought has been seen, an answer that is not marked otherwise begins as a thought.
    """

    _MOST_HELD = 400
    _NUM_PLAIN = 2

    def __init__(self) -> None:
        self._num_plain = 0
        self.is_unopened = False

    @property
    def num_held(self) -> int:
        """Characters of an answer that are held back until it is known that they are no thought."""
        return self._MOST_HELD if self._num_plain < self._NUM_PLAIN else 0

    def note_plain(self) -> None:
        """Note an answer that was no thought."""
        self._num_plain += 1

    def note_opened(self) -> None:
        """Note a thought that began with its opening tag."""
        self._num_plain = self._NUM_PLAIN

    def note_unopened(self) -> None:
        """Note a thought that was closed, and had not been opened."""
        self.is_unopened = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatFormat:
    """How a model marks its thoughts and its calls; None where it marks none."""

    think_start: str | None = None
    think_end: str | None = None
    calls: CallForm | None = None
    tells_tools: Literal["template", "with a system message", "prompt"] = "template"
    """The teller of tools: the model's template, in some only beside a system's message, or the prompt."""
    frames: tuple[str, ...] = ()
    """Tags around content, which are no part of it."""
    is_harmony: bool = False
    """Answers are messages with headers, as gpt-oss writes them, and nothing of the above is of use."""
    habit: ReasoningHabit = field(default_factory=ReasoningHabit, compare=False)

    @property
    def has_reasoning(self) -> bool:
        return self.is_harmony or bool(self.think_start and self.think_end)

    @property
    def has_tools(self) -> bool:
        return self.is_harmony or self.calls is not None


class OutputParser(Protocol):
    """Tells apart what one choice writes. The parts do not depend on how the text is cut, but for where they are."""

    @property
    def markup(self) -> tuple[str, ...]:
        """Strings that have to be in the text, were they special tokens, for it to be understood."""

    @property
    def done(self) -> bool:
        """Nothing that follows is wanted."""

    def feed(self, text: str) -> list[Part]:
        """What is settled by now, in order; a part may be short of `text`, never ahead of it."""

    def flush(self, *, is_cut: bool = False) -> list[Part]:
        """The rest, at least one part; the sizes of all parts add up to the text.

        `is_cut`: the model had not finished, so what is left out at the end of its text is not understood.
        """


def markup_of(format: ChatFormat, *, has_tools: bool) -> tuple[str, ...]:
    """Return the strings that have to be in a text, were they special tokens, for its parser to understand it."""
    calls = format.calls.markup if has_tools and format.calls is not None else ()
    control = (CONTROL_MARK,) if calls else ()
    return tuple(dict.fromkeys(filter(None, (format.think_start, format.think_end, *format.frames, *calls, *control))))
