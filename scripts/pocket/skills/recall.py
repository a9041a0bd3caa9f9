"""Recall of a fact planted in a context of other facts of the same form.

Every key (a thing and a name) occurs once in a context, so that one line answers a question. Short contexts may be told
over several turns with other talk between.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise

from scripts.pocket import words
from scripts.pocket.items import Item
from scripts.pocket.skills import identity, letters
from scripts.pocket.skills.base import Draw, Message, asked, assistant, system, user
from scripts.pocket.skills.judge import says

Fact = tuple[str, str, str]
"""Thing, owner and value: ("code", "Maria", "7319")."""

_FILLER = (
    "The weather was mild that day.",
    "Nobody was in a hurry.",
    "The meeting went on after lunch.",
    "It rained a little in the evening.",
    "The door was left open.",
    "Everyone agreed to wait.",
    "A train passed in the distance.",
    "The tea was still warm.",
    "There was nothing else to report.",
    "The lamp in the hall was on.",
    "The garden was quiet.",
    "Somebody laughed in the kitchen.",
    "The list goes on below.",
    "The next page is shorter.",
    "The old clock had stopped.",
    "Most of the seats were taken.",
)
_OPENINGS = ("Notes:", "Read these notes.", "Here are some facts.", "Remember these facts.", "Use these notes.")
_KEYED = "{name}: {value}"
_SAID = "The {what} for {name} is {value}."
_PIECE = re.compile(rf" ?\b(?:{'|'.join(words.FRAME)})\b|\b(?:{'|'.join((*words.CITIES, *words.COLOURS))})\b|.|\n")


def approximate_tokens(text: str) -> int:
    """Return approximately how many tokens a small vocabulary needs for `text`, rather too many than too few."""
    return len(_PIECE.findall(text))


def _value(draw: Draw, what: str) -> str:
    if what == "code":
        return draw.code()
    if what == "room":
        return str(draw.rng.randrange(100, 1000))
    return draw.one({"city": words.CITIES, "colour": words.COLOURS, "animal": words.ANIMALS}[what])


def _facts(draw: Draw, things: tuple[str, ...]) -> Callable[[], Fact]:
    """Return a source of facts whose keys never repeat."""
    known: set[tuple[str, str]] = set()

    def next_fact() -> Fact:
        while True:
            what, name = draw.one(things), draw.name()
            if (what, name) not in known:
                known.add((what, name))
                return what, name, _value(draw, what)

    return next_fact


def said(fact: Fact) -> str:
    what, name, value = fact
    return _SAID.format(what=what, name=name, value=value)


def question(draw: Draw, fact: Fact) -> str:
    """Return a question, nearly always in the words of the fact itself."""
    what, name, _ = fact
    way = draw.rng.random()
    if way < 0.08:
        return f"What is {name}'s {what}?"
    return f"Tell me the {what} for {name}." if way < 0.12 else f"What is the {what} for {name}?"


def _context(
    draw: Draw, facts: Callable[[], Fact], size: int, template: str, measure: Callable[[str], int]
) -> tuple[list[str], list[Fact]]:
    """Return lines of about `size` tokens together, and the facts among them in order."""
    lines: list[str] = []
    planted: list[Fact] = []
    while size > 0 or len(planted) < 2:
        if template == _SAID and draw.chance(0.08):
            line = draw.one(_FILLER)
        else:
            fact = facts()
            planted.append(fact)
            line = template.format(what=fact[0], name=fact[1], value=fact[2])
        lines.append(line)
        size -= measure(line + "\n")
    return lines, planted


def _chosen(draw: Draw, planted: list[Fact], questions: int, position: float | None) -> list[Fact]:
    """Return the facts to ask for; the last, which is judged, is at `position` (0 to 1)."""
    if position is not None:
        last = planted[min(int(position * len(planted)), len(planted) - 1)]
        others = [fact for fact in planted if fact is not last]
        return [*draw.rng.sample(others, min(questions - 1, len(others))), last]
    return draw.rng.sample(planted, min(questions, len(planted)))


def _things(draw: Draw) -> tuple[str, ...]:
    if draw.chance(0.5):
        return ("code",)
    return draw.one((("code", "city"), ("code", "city", "colour"), ("code", "room", "animal"), ("city",), ("room",)))


def _document(draw: Draw, lines: list[str], first: str) -> list[Message]:
    text = (" " if draw.chance(0.2) and len(lines) < 40 else "\n").join(lines)
    if draw.chance(0.3):
        return [system(f"{draw.one(_OPENINGS)}\n{text}"), user(first)]
    opening = f"{draw.one(_OPENINGS)}\n" if draw.chance(0.6) else ""
    return [user(f"{opening}{text}\n\n{first}")]


def _default_questions(draw: Draw, size: int) -> int:
    """Return the number of questions: several about a long context in training, whose other tokens teach little."""
    return 1 if draw.split == "test" else draw.rng.randint(1, 2 + min(size // 120, 6))


def document(
    draw: Draw,
    context_tokens: int,
    measure: Callable[[str], int],
    questions: int | None,
    position: float | None,
    things: tuple[str, ...] | None,
) -> Item:
    """Return all facts at once, as a system message or before the question, then questions turn by turn."""
    keyed = draw.chance(0.2)
    kinds = things or (("code",) if keyed else _things(draw))
    template = _KEYED if keyed and len(kinds) == 1 else _SAID
    count = questions or _default_questions(draw, context_tokens)
    turns = min(60 + 40 * (count - 1), context_tokens // 2)  # questions, answers, and the marks around them
    lines, planted = _context(draw, _facts(draw, kinds), context_tokens - turns, template, measure)
    if template == _KEYED:
        lines.insert(0, f"The {kinds[0]} for each name:")
    asked_for = _chosen(draw, planted, count, position)
    messages = _document(draw, lines, question(draw, asked_for[0]))
    for fact, following in pairwise(asked_for):
        messages += [assistant(said(fact)), user(question(draw, following))]
    return _finished(draw, messages, said(asked_for[-1]), asked_for[-1][2])


def _finished(draw: Draw, messages: list[Message], answer: str, value: str) -> Item:
    return asked(draw, "recall", messages, answer, says(value))


def _told(fact: Fact) -> list[Message]:
    return [user(said(fact)), assistant(f"Noted: the {fact[0]} for {fact[1]} is {fact[2]}.")]


def _small_talk(draw: Draw, most: int) -> list[Message]:
    messages: list[Message] = []
    for _ in range(draw.rng.randint(0, most)):
        messages += (letters.spell(draw) if draw.chance(0.5) else identity.make(draw)).messages
    return messages


def own_name(draw: Draw) -> Item:
    """Return a talk in which the user gives a name and asks for it later."""
    name = draw.name()
    opening = draw.one(("My name is {}.", "Hello, my name is {}.", "I am {}.")).format(name)
    messages = [user(opening), assistant(f"Hello {name}! What can I do for you?"), *_small_talk(draw, 2)]
    messages.append(user(draw.one(("What is my name?", "Who am I?", "What's my name?"))))
    return _finished(draw, messages, f"Your name is {name}.", name)


def talk(draw: Draw) -> Item:
    """Return facts told early, other talk between, and a question for one of them at the end."""
    if draw.chance(0.2):
        return own_name(draw)
    facts = _facts(draw, ("code", "city", "colour", "room"))
    told = [facts() for _ in range(draw.rng.randint(1, 4))]
    messages: list[Message] = []
    for fact in told:
        messages += [*_told(fact), *_small_talk(draw, 2)]
    fact = draw.one(told)
    return _finished(draw, [*messages, user(question(draw, fact))], said(fact), fact[2])


def unknown_key(draw: Draw) -> Item:
    """Return a question for a name that does not occur."""
    facts = _facts(draw, ("code",))
    lines, _ = _context(draw, facts, draw.rng.randint(20, 80), _SAID, approximate_tokens)
    missing = facts()
    messages = _document(draw, lines, question(draw, missing))
    answer = f"I do not know the code for {missing[1]}."
    return asked(draw, "recall", messages, answer, lambda text: "not know" in text)


def make(
    draw: Draw,
    context_tokens: int | None = None,
    measure: Callable[[str], int] = approximate_tokens,
    questions: int | None = None,
    position: float | None = None,
    things: tuple[str, ...] | None = None,
) -> Item:
    """Return an item of about `context_tokens` by `measure`; None draws form and length.

    `questions`: their number (None: several in training, one in test); `position`: place of the last one's answer (0
    the beginning, 1 the end); `things`: kinds of facts (code, city, colour, room, animal).
    """
    if context_tokens is None:
        way = draw.rng.random()
        if way < 0.2:
            return talk(draw)
        if way < 0.24 and draw.split == "train":
            return unknown_key(draw)
    size = context_tokens or draw.rng.randint(40, 240)
    return document(draw, size, measure, questions, position, things)
