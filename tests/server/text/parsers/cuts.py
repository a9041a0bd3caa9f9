"""Texts cut into pieces, and what a parser makes of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from hypothesis import strategies as st

from server.text.parsers.parts import Part


class Splitter(Protocol):
    def feed(self, text: str) -> list[Part]: ...

    def flush(self, *, is_cut: bool = False) -> list[Part]: ...


def every_cut(text: str) -> Iterator[list[str]]:
    """In two at every place, whole, and into characters."""
    yield from ([text[:place], text[place:]] for place in range(len(text) + 1))
    yield list(text)


@st.composite
def pieces(draw: st.DrawFn, words: Sequence[str]) -> tuple[str, list[str]]:
    """A text made of `words`, and the same cut anywhere."""
    text = "".join(draw(st.lists(st.sampled_from(words), max_size=16)))
    places = sorted(draw(st.lists(st.integers(0, len(text)), max_size=8)))
    return text, [text[start:end] for start, end in zip([0, *places], [*places, len(text)], strict=True)]


def parts_of(parser: Splitter, cut: Iterable[str]) -> list[Part]:
    """All parts; checks what holds of every output."""
    given, settled, parts = 0, 0, []
    for text in cut:
        given += len(text)
        new = parser.feed(text)
        settled += sum(part.size for part in new)
        assert settled <= given
        parts += new
    last = parser.flush()
    assert last
    assert settled + sum(part.size for part in last) == given
    for part in [*parts, *last]:
        assert part.kind != "content" or part.size == len(part.text)
    return [*parts, *last]


def text_of(parts: Iterable[Part], kind: str) -> str:
    return "".join(part.text for part in parts if part.kind == kind)


def calls_of(parts: Iterable[Part]) -> list[tuple[str, str]]:
    return [(call.name, call.arguments) for part in parts for call in part.calls]
