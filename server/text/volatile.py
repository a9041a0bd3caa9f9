"""Lines of system prompts that change with every request, moved or dropped so that they cost no recomputation.

A clock at the beginning of a prompt makes every prompt new, so that no cached prefix matches. The table `ROWS` lists
the lines that clients write: a line irrelevant to the answer is dropped, a relevant one moves behind the last message,
where only what follows it is recomputed. Everything else stays: dates change once a day, and clients repeat messages
other than system prompts verbatim. Works on messages; independent of templates and tokens.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Message = Mapping[str, Any]
Fate = Literal["dropped", "moved"]

_LONGEST_TEXT = 400_000
"""Characters of the longest system prompt that is searched; a longer one stays as it is."""
_MOST_HITS = 8
"""Most lines of one kind in a system prompt; more are examples or data."""
_MOST_WORDS = 20
"""Most words of a date and time, or of a sentence that counts tokens."""
_LONGEST_VALUE = 300
"""Most characters of the same."""
_REMINDER = "<system-reminder>\n{}\n</system-reminder>"


@dataclass(frozen=True, slots=True)
class Settled:
    """A conversation without its volatile lines, and their fates."""

    messages: tuple[Message, ...]
    reminders: tuple[str, ...] = ()
    """The lines that were moved."""
    fates: tuple[tuple[str, Fate], ...] = ()
    """The rows of the table that were found, each once."""


@dataclass(frozen=True, slots=True)
class _Hit:
    """A part of a line; `label`: the words that introduce it."""

    start: int
    stop: int
    label: str


@dataclass(frozen=True, slots=True)
class Row:
    """One kind of volatile line. `trigger` matches every line in which `find` finds something."""

    name: str
    fate: Fate
    trigger: re.Pattern[str]
    find: Callable[[str], Iterator[_Hit]]


def settle(messages: Sequence[Message]) -> Settled:
    """Take the volatile lines out of the system prompt: the system messages before all others."""
    told = tuple(messages)
    count = next((place for place, each in enumerate(told) if each.get("role") != "system"), len(told))
    texts = [str(message.get("content") or "") for message in told[:count]]
    if sum(map(len, texts)) > _LONGEST_TEXT:
        return Settled(told)
    reminders: list[str] = []
    fates: list[tuple[str, Fate]] = []
    for row in ROWS:
        if row.fate == "moved" and _place(told) is None:
            continue
        taken = _take_out(texts, row)
        if taken:
            fates.append((row.name, row.fate))
            reminders += taken if row.fate == "moved" else ()
    settled = [
        {**message, "content": text}
        for message, text in zip(told[:count], texts, strict=True)
        if text.strip() or not str(message.get("content") or "").strip()
    ]
    if not fates or not (settled or told[count:]):
        return Settled(told)
    return Settled((*settled, *told[count:]), tuple(reminders), tuple(fates))


def with_reminders(messages: Sequence[Message], reminders: Sequence[str]) -> tuple[Message, ...]:
    """Return the conversation with the moved lines at the end of its last user or tool message."""
    place = _place(messages)
    if not reminders or place is None:
        return tuple(messages)
    content = str(messages[place].get("content") or "")
    said = _REMINDER.format("\n".join(reminders))
    reminded = {**messages[place], "content": f"{content}\n\n{said}" if content else said}
    return (*messages[:place], reminded, *messages[place + 1 :])


def _place(messages: Sequence[Message]) -> int | None:
    """Return the index of the last user or tool message."""
    places = (place for place in reversed(range(len(messages))) if messages[place].get("role") in ("user", "tool"))
    return next(places, None)


def _take_out(texts: list[str], row: Row) -> list[str]:
    """Remove a row's lines from the texts and return them.

    All stay if there are many, or two with the same label: these are examples, or entries of a log.
    """
    found: list[tuple[int, int, list[str], list[_Hit]]] = []
    for number, text in enumerate(texts):
        if row.trigger.search(text):
            lines = text.splitlines(keepends=True)
            for at, line in _outside_code(lines):
                hits = list(row.find(line.rstrip("\r\n")))
                found += [(number, at, lines, hits)] if hits else []
    labels = Counter(hit.label for *_, hits in found for hit in hits)
    if not labels or labels.total() > _MOST_HITS or max(labels.values()) > 1:
        return []
    taken: list[str] = []
    for number, at, lines, hits in found:
        line = lines[at]
        lines[at] = _without(line, hits)
        said = [line[hit.start : hit.stop] for hit in hits] if lines[at] else [line.lstrip(_BULLETS.replace("*", ""))]
        taken += [text.strip() for text in said]
        texts[number] = "".join(lines)
    return taken


def _outside_code(lines: Sequence[str]) -> Iterator[tuple[int, str]]:
    is_code = False
    for at, line in enumerate(lines):
        if line.lstrip().startswith(("```", "~~~")):
            is_code = not is_code
        elif not is_code:
            yield at, line


def _without(line: str, hits: Sequence[_Hit]) -> str:
    """Return the line without some parts; empty if only its bullet and its end would remain."""
    rest, place = "", 0
    for hit in hits:
        rest, place = rest + line[place : hit.start], hit.stop
        if rest.endswith((" ", "\t")) or not rest.strip():
            while line[place : place + 1] in (" ", "\t"):
                place += 1
    rest += line[place:]
    return "" if not rest.strip(_BULLETS + "\r\n") else rest


# --- the table


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_BULLETS = " \t>#*-+•|_`"
_BEFORE = r"(?:^[\s>\#*+•|_`-]*|(?<=[.!?;]\s))"
"""Possible starts of a sentence: after a bullet at the beginning of a line, or after another sentence."""
_MARKS = r"[*_`\"]{0,3}"
_ELEMENT = re.compile(r"[\s>*+•|-]*(?P<all><(?P<tag>[A-Za-z][\w-]{1,30})>(?P<inner>[^<>\n]{1,200})</(?P=tag)>)\s*")

_CLOCK_LABEL = re.compile(
    rf"""
    {_BEFORE} (?P<label>
        (?:(?:the|your|user's)\s+)?
        (?: current\s+ (?:(?:local|system|utc)\s+)?
            (?:date\s*(?:and|&|/|,|\+)?\s*time | time(?:\s+and\s+date)? | date | timestamp | day)
          | (?:local|system|server|utc)\s+time | date\s*(?:and|&|/)?\s*time | timestamp
          | today(?:'s\s+(?:date|day)(?:\s+and\s+time)?)? | time\s+now | now
          | aktuelle\s+(?:uhr)?zeit | datum\s+und\s+uhrzeit | (?:date\s+et\s+)?heure(?:\s+actuelle)?
          | (?:fecha\s+y\s+)?hora(?:\s+actual)? | 当前时间 | 现在时间 | 現在時刻 )
        {_MARKS} (?:\s*\([^()\n]{{1,40}}\))? {_MARKS} \s* (?: is|ist|est|es|:|\uff1a|= )
      | it(?:'s|\s+is)\s+(?:now|currently)
    )
    {_MARKS} (?=\s|\d)
    """,
    re.IGNORECASE | re.VERBOSE,
)
_TIME = re.compile(r"(?<!\d)\d{1,2}[:h]\d{2}(?!\d)|\d[Tt]\d{2}:?\d{2}|(?<!\d)1[6-9]\d{8}(?:\d{3})?(?!\d)")
"""A time of day with minutes, or seconds since 1970: values that change within a day."""
_DATE_NUMBER = re.compile(r"[+-]?\d[\d:.,/+\-TZhW年月日时時分秒]*(?:st|nd|rd|th|am|pm|a\.m|p\.m|z)?", re.IGNORECASE)
_ZONE = re.compile(r"(?:UTC|GMT|MSK|WIB|[A-Z]{0,4}T)(?:[+-]\d[\d:]*)?|[A-Z][A-Za-z]+(?:/[A-Z][A-Za-z_-]+){1,2}")
_DATE_WORDS = _words(
    "am pm a.m p.m at on of the and in to is it's date time day week local zone timezone clock o'clock z "
    "monday tuesday wednesday thursday friday saturday sunday mon tue tues wed thu thur thurs fri sat sun "
    "january february march april may june july august september october november december "
    "jan feb mar apr jun jul aug sep sept oct nov dec "
    "coordinated universal standard daylight summer eastern central mountain pacific european "
    "um uhr à le el las a de"
)

_UNITS = r"(?:tokens?|turns?|steps?|iterations?|messages?|requests?)"
_BUDGET_LABEL = re.compile(
    rf"""
    {_BEFORE} (?P<label>
        you\s+(?:still\s+)?have(?:\s+about)?(?=\s+\d)
      | (?:the\s+)?
        (?: remaining\s+(?:{_UNITS}|context|budget)
          | (?:{_UNITS} | (?:context|token)(?:\s+(?:window|budget))?) \s+ (?:left|remaining|used|usage) )
        {_MARKS} \s* (?: is|are|:|= )
      | (?=[\d.,]+[km%]?\s+(?:{_UNITS}|context)\s+(?:left|remaining|used)\b)
    )
    {_MARKS}
    """,
    re.IGNORECASE | re.VERBOSE,
)
_BUDGET = re.compile(r"\b(?:left|remaining|used|usage)\b", re.IGNORECASE)
"""A word in every sentence that counts what is left."""
_BUDGET_WORDS = _words(
    "token tokens turn turns step steps iteration iterations message messages request requests context window budget "
    "left remaining remain remains used usage of in the your this conversation session until compaction auto-compact "
    "is are total and out for about approximately k m / ~ -"
)
_AMOUNT = re.compile(r"~?\d[\d.,_]*[kKmM]?%?(?:/\d[\d.,_]*[kKmM]?%?)?")

_CUT = "()[]{},;'\"*`_|"
_PARENTHESES = re.compile(r"\([A-Za-z0-9 ./_:+-]{1,60}\)")
_ABBREVIATIONS = frozenset({"a.m.", "p.m."})
_BILLING = "x-anthropic-billing-header:"


def _find_billing(line: str) -> Iterator[_Hit]:
    """Find the line meant for Anthropic's gateway, which removes it; part of it differs from session to session."""
    if line.startswith(_BILLING):
        yield _Hit(0, len(line), _BILLING)


def _find_clock(line: str) -> Iterator[_Hit]:
    return _find_sentences(line, _CLOCK_LABEL, _is_of_date, _TIME)


def _find_budget(line: str) -> Iterator[_Hit]:
    for hit in _find_sentences(line, _BUDGET_LABEL, _is_of_budget, _AMOUNT):
        if _BUDGET.search(line, hit.start, hit.stop):
            yield hit


def _with_elements(find: Callable[[str], Iterator[_Hit]]) -> Callable[[str], Iterator[_Hit]]:
    """Also find whole elements: an element's name may be the label of its value."""

    def find_either(line: str) -> Iterator[_Hit]:
        element = _ELEMENT.fullmatch(line)
        if element is None:
            yield from find(line)
            return
        inner = element["inner"].strip()
        label = element["tag"].replace("_", " ").replace("-", " ")
        for text in (inner, f"{label}: {inner}"):
            hits = list(find(text))
            if len(hits) == 1 and hits[0].start == 0 and hits[0].stop == len(text):
                yield _Hit(*element.span("all"), hits[0].label)
                return

    return find_either


def _find_sentences(
    line: str, label: re.Pattern[str], is_word: Callable[[str], bool], needed: re.Pattern[str]
) -> Iterator[_Hit]:
    """Yield the sentences that consist of a label and a value; `needed` occurs in every value."""
    place = num_found = 0
    while num_found <= _MOST_HITS and (begun := label.search(line, place)) is not None:
        stop = _end_of_value(line, begun.end(), is_word, needed)
        if stop is not None:
            num_found += 1
            yield _Hit(begun.start("label"), stop, " ".join(begun["label"].lower().split()))
        place = max(stop or 0, begun.end(), place + 1)


def _end_of_value(line: str, start: int, is_word: Callable[[str], bool], needed: re.Pattern[str]) -> int | None:
    """Return the end of a value that begins at `start`: that of its sentence or the line. None: it is not a value."""
    value = line[start : start + _LONGEST_VALUE]
    # a time zone's name in parentheses may consist of any words
    text = _PARENTHESES.sub(lambda found: " " * len(found.group()), value)
    end = 0
    for number, found in enumerate(re.finditer(r"\S+", text)):
        word = found.group().strip(_CUT)
        core = word.rstrip(".!")
        if number == _MOST_WORDS or (core and not is_word(core)):
            return None
        end = found.end()
        if core != word and word.lower() not in _ABBREVIATIONS:
            break
    if not text[end:].strip():
        end = len(value.rstrip())
    return start + end if needed.search(line, start, start + end) else None


def _is_of_date(word: str) -> bool:
    return word.lower() in _DATE_WORDS or bool(_DATE_NUMBER.fullmatch(word) or _ZONE.fullmatch(word))


def _is_of_budget(word: str) -> bool:
    return word.lower() in _BUDGET_WORDS or bool(_AMOUNT.fullmatch(word))


ROWS: tuple[Row, ...] = (
    Row("billing-header", "dropped", re.compile(re.escape(_BILLING)), _find_billing),
    Row("clock", "moved", _TIME, _with_elements(_find_clock)),
    Row("budget-left", "moved", _BUDGET, _with_elements(_find_budget)),
)
"""Every kind of line known to change from one request to the next."""
