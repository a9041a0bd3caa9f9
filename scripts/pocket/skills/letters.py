"""Counting letters and spelling. The reasoning spells the word and counts along: `r: s0 t0 r1 a1 …`."""

from __future__ import annotations

from scripts.pocket import words
from scripts.pocket.items import Item
from scripts.pocket.skills.base import Draw, asked
from scripts.pocket.skills.judge import last_number_is, spelling_is

_COUNT = (
    "How many {letter}'s are in {word}?",
    "How many {letter}'s are in the word {word}?",
    'Count the letter {letter} in "{word}".',
    'How many times does the letter {letter} appear in "{word}"?',
    "How many {letter} are in {word}?",
    "how many {letter}'s in {word}",
)
_SPELL = ("Spell the word {word}.", "Spell {word}.", 'How do you spell "{word}"?')
_LENGTH = ("How many letters are in {word}?", 'How many letters does the word "{word}" have?')


def running_count(word: str, letter: str) -> str:
    """Return each letter with the count of `letter` so far: each step depends only on the one before."""
    count = 0
    steps = [f"{letter}:"]
    for each in word:
        count += each == letter
        steps.append(f"{each}{count}")
    return " ".join(steps)


def running_length(word: str) -> str:
    return " ".join(["length:", *(f"{letter}{place}" for place, letter in enumerate(word, 1))])


def pick_letter(draw: Draw, word: str) -> str:
    """Return a letter, mostly one in the word, and often one that occurs twice."""
    twice = [letter for letter in word if word.count(letter) > 1]
    if twice and draw.chance(0.5):
        return draw.one(twice)
    return draw.one(word if draw.chance(0.7) else words.LETTERS)


def _sentence(count: int, letter: str, word: str) -> str:
    if count == 0:
        return f"There are no {letter}'s in {word}."
    return f"There {'is' if count == 1 else 'are'} {count} {letter}{'' if count == 1 else chr(39) + 's'} in {word}."


def _as_asked(draw: Draw, text: str) -> str:
    """Sometimes capitalize the text, as people type."""
    return text.capitalize() if draw.chance(0.06) else text


def count(draw: Draw, word: str | None = None, letter: str | None = None) -> Item:
    word = word or draw.word()
    letter = letter or pick_letter(draw, word)
    question = draw.one(_COUNT).format(letter=_as_asked(draw, letter), word=_as_asked(draw, word))
    number = word.count(letter)
    answer = _sentence(number, letter, word)
    return asked(draw, "letters", question, answer, last_number_is(number), running_count(word, letter))


def spell(draw: Draw) -> Item:
    word = draw.word()
    return asked(draw, "letters", draw.one(_SPELL).format(word=word), "-".join(word), spelling_is(word))


def length(draw: Draw) -> Item:
    word = draw.word()
    answer = f"There are {len(word)} letters in {word}."
    check = last_number_is(len(word))
    return asked(draw, "letters", draw.one(_LENGTH).format(word=word), answer, check, running_length(word))


def make(draw: Draw, word: str | None = None, letter: str | None = None, kind: str | None = None) -> Item:
    """Return an item; `kind` is count, spell or length; a given word or letter means count."""
    kind = kind or ("count" if word or letter else draw.one(("count",) * 5 + ("spell",) * 4 + ("length",)))
    if kind == "count":
        return count(draw, word, letter)
    return spell(draw) if kind == "spell" else length(draw)
