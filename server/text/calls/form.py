"""The form in which a family of models writes calls, as data by which calls are read, written and demanded.

A section of calls stands between `start` and `end`; a call in it is `head`, its name, `mid`, its arguments and `tail`,
or one JSON object. Line ends in these texts are how the model's template writes them; a reader takes any white space,
or none, in their place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal
from uuid import uuid4

ArgumentStyle = Literal["object", "json", "pairs", "bare", "python"]
"""How arguments are written.

- `object`: name and arguments are members of one JSON object.
- `json`: a JSON object behind the name.
- `pairs`: one tagged value after another.
- `bare`: an object with keys that stand bare, and with quotes of its own.
- `python`: keyword arguments between parentheses.
"""


def default_id() -> str:
    return f"call_{uuid4().hex[:24]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One argument with a tag before it and a tag behind it. `{key}` is its name, `{nl}` a line end or nothing."""

    head: str
    tail: str
    frame: str = ""
    """Stands on both sides of a value and is no part of it; nothing, or a line end."""
    between: str = ""
    """Written behind `tail`."""
    text_flag: str = ""
    """The value of `{flag}` in the head of a text. Where a head has one, a text is taken to the letter."""
    other_flags: tuple[str, ...] = ()
    """The values of `{flag}` for anything else."""
    cdata: bool = False
    """A value may be wrapped in `<![CDATA[` and `]]>`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallForm:
    """How a family of models writes its calls."""

    name: str = ""
    models: str = ""
    start: str = ""
    """Opens a section of calls; empty where a call has no tag before its head."""
    end: str = ""
    """Closes the section; empty where the output ends with it."""
    before: str = ""
    """Behind `start`, before the first call."""
    between: str | None = None
    """Parts the calls of a section; None where a section has one call."""
    after: str = ""
    """Behind the last call, before `end`."""
    head: str = ""
    mid: str = ""
    """Between name and arguments; `{index}` is the number of the call."""
    tail: str = ""
    style: ArgumentStyle = "object"
    pair: Pair | None = None
    quote: str = ""
    """Around a text in bare arguments."""
    keys: tuple[str, str] = ("name", "arguments")
    """The keys of name and arguments in an object."""
    is_list: bool = False
    """The objects of a section are the items of one list."""
    named_key: bool = False
    """An object's only key is the call's name, and its value the arguments."""
    inside: tuple[str, ...] = ()
    """Special tokens of calls beside the tags, which a text leaves out otherwise."""
    id_is_name: bool = False
    """A call's id is its name as it was written, prefix and number included."""
    new_id: Callable[[], str] = default_id
    also: tuple[CallForm, ...] = ()
    """Other ways in which the family's calls are read. They are not written."""
    own_words: bool = False
    """The template says nothing of calls: the prompt has to, and the model is held to the form."""
    template: tuple[str, ...] = ()
    """Texts that a chat template has, all of them, where its model writes calls in this form."""
    vocabulary: tuple[str, ...] = ()
    """Tokens that tell the same where the template says nothing."""

    @property
    def opening(self) -> str:
        """The beginning of a section; empty where its first call has no mark of its own."""
        return self.start or self.head

    def end_of(self, start: str) -> str:
        """Return what closes a section that `start` has opened; empty where nothing does."""
        return next((form.end or self.end for form in (self, *self.also) if form.start == start), self.end)

    @property
    def markup(self) -> tuple[str, ...]:
        """Strings in which special tokens have to be seen for calls to be read."""
        own = (self.start, self.end, self.head, self.mid, self.tail, self.quote, *self.inside)
        pair = (self.pair.head, self.pair.tail) if self.pair else ()
        others = (string for form in self.also for string in form.markup)
        return tuple(filter(None, (*own, *pair, *others)))
