"""Texts with which calls may begin: tags, and substitutes for a tag that a model omitted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from server.text.calls.form import CallForm


@dataclass(frozen=True, slots=True)
class Openers:
    """Texts with which a section of calls may begin.

    `tags` open one anywhere. `heads` begin its first call without that tag; `at_line` do so at the beginning of a line
    only, white space aside.
    """

    tags: tuple[str, ...]
    heads: tuple[str, ...]
    at_line: tuple[str, ...]


def openers_of(form: CallForm, names: Sequence[str], *, is_held: bool = False) -> Openers:
    """Return the texts that may begin calls of the named tools; `is_held`: no tag is ever omitted."""
    if is_held and form.opening:
        return Openers((form.start,), (), ()) if form.start else Openers((), (form.head,), ())
    forms = (form,) if is_held else (form, *form.also)
    tags = _unique(each.start for each in forms)
    heads = _unique(each.head for each in forms if _is_tag(each.head))
    at_line = _unique(opener for each in forms for opener in _at_line(each, names, is_held=is_held))
    return Openers(tags, heads, at_line)


def _at_line(form: CallForm, names: Sequence[str], *, is_held: bool) -> Iterator[str]:
    if _is_tag(form.head):
        return
    if form.style == "object":
        yield from ("{", "[", "```")
        return
    if form.style == "python":
        brackets = (form.before,) if is_held else ("[", "")
        yield from (f"{bracket}{name}(" for name in names for bracket in brackets)
        return
    follows = form.mid.partition("{")[0].strip()
    pair = form.pair.head.partition("{")[0] if form.pair else ""
    if follows or pair:
        ends = [follows] if follows else [pair, "\n" + pair]
        yield from (f"{form.head}{name}{end}" for name in names for end in ends)
    elif form.head and form.style == "bare":
        yield from (f"{form.head}{name}{{" for name in names)


def _is_tag(head: str) -> bool:
    return "<" in head


def _unique(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(filter(None, texts)))
