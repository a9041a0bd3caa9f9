"""Description of a model family's call syntax, as data used to parse, write and enforce calls.

A section of calls is enclosed by `start` and `end`; a call in it is `head`, its name, `mid`, its arguments and `tail`,
or one JSON object. Newlines in these texts are those that the model's template writes; the parser accepts any white
space, or none, in their place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal
from uuid import uuid4

ArgumentStyle = Literal["object", "json", "pairs", "bare", "python"]
"""Syntax of arguments.

- `object`: name and arguments are members of one JSON object.
- `json`: a JSON object after the name.
- `pairs`: a sequence of tagged values.
- `bare`: an object with bare keys and custom quotes.
- `python`: keyword arguments in parentheses.
"""


def default_id() -> str:
    return f"call_{uuid4().hex[:24]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One argument between an opening and a closing tag. `{key}` is its name, `{nl}` a newline or nothing."""

    head: str
    tail: str
    frame: str = ""
    """Encloses a value without being part of it; empty, or a newline."""
    between: str = ""
    """Follows `tail`."""
    text_flag: str = ""
    """Value of `{flag}` in the head of a text. If a head has a flag, a text is taken literally."""
    other_flags: tuple[str, ...] = ()
    """Values of `{flag}` for anything else."""
    cdata: bool = False
    """A value may be wrapped in `<![CDATA[` and `]]>`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallForm:
    """Call syntax of a model family."""

    name: str = ""
    models: str = ""
    start: str = ""
    """Opens a section of calls; empty if a call has no tag before its head."""
    end: str = ""
    """Closes the section; empty if the output ends with it."""
    before: str = ""
    """Follows `start`, before the first call."""
    between: str | None = None
    """Separates the calls of a section; None if a section has one call."""
    after: str = ""
    """Follows the last call, before `end`."""
    head: str = ""
    mid: str = ""
    """Separates name and arguments; `{index}` is the number of the call."""
    tail: str = ""
    style: ArgumentStyle = "object"
    pair: Pair | None = None
    quote: str = ""
    """Encloses a text in bare arguments."""
    keys: tuple[str, str] = ("name", "arguments")
    """Keys of name and arguments in an object."""
    is_list: bool = False
    """The objects of a section are the items of one list."""
    named_key: bool = False
    """An object's only key is the call's name, and its value the arguments."""
    inside: tuple[str, ...] = ()
    """Special tokens of calls other than the tags, otherwise omitted from text."""
    id_is_name: bool = False
    """A call's id is its name as written, including prefix and number."""
    new_id: Callable[[], str] = default_id
    also: tuple[CallForm, ...] = ()
    """Other forms in which the family's calls are parsed. They are never written."""
    own_words: bool = False
    """The template does not describe calls: the prompt must, and a grammar enforces the form."""
    template: tuple[str, ...] = ()
    """Texts that all occur in the chat template of a model that uses this form."""
    vocabulary: tuple[str, ...] = ()
    """Tokens that identify the form if the template does not."""

    @property
    def opening(self) -> str:
        """Beginning of a section; empty if its first call has no mark of its own."""
        return self.start or self.head

    def end_of(self, start: str) -> str:
        """Return the closing text of a section opened by `start`; empty if there is none."""
        return next((form.end or self.end for form in (self, *self.also) if form.start == start), self.end)

    @property
    def markup(self) -> tuple[str, ...]:
        """Strings with special tokens that must be visible for calls to be parsed."""
        own = (self.start, self.end, self.head, self.mid, self.tail, self.quote, *self.inside)
        pair = (self.pair.head, self.pair.tail) if self.pair else ()
        others = (string for form in self.also for string in form.markup)
        return tuple(filter(None, (*own, *pair, *others)))
