"""Following a system prompt: one word, capitals, a fixed beginning or end, another name."""

from __future__ import annotations

from collections.abc import Callable

from scripts.pocket import words
from scripts.pocket.items import Item
from scripts.pocket.skills.base import Draw, asked, system, user
from scripts.pocket.skills.judge import says, text_is

Rule = Callable[[str, str], str]
"""Returns the answer in the form of the rule, from an answer and its one word."""

_PLAIN: tuple[tuple[str, str, str], ...] = (
    ("What colour is the sky?", "The sky is blue.", "Blue"),
    ("What colour is grass?", "Grass is green.", "Green"),
    ("What colour is snow?", "Snow is white.", "White"),
    ("What colour is coal?", "Coal is black.", "Black"),
    ("What colour is a lemon?", "A lemon is yellow.", "Yellow"),
    ("Is ice cold?", "Yes, ice is cold.", "Yes"),
    ("Is fire cold?", "No, fire is not cold.", "No"),
    ("Is fire hot?", "Yes, fire is hot.", "Yes"),
    ("Is ice hot?", "No, ice is not hot.", "No"),
    ("Is the sea wet?", "Yes, the sea is wet.", "Yes"),
    ("What does a cow give?", "A cow gives milk.", "Milk"),
    ("What does a bee make?", "A bee makes honey.", "Honey"),
    ("How many legs does a dog have?", "A dog has four legs.", "Four"),
    ("How many legs does a spider have?", "A spider has eight legs.", "Eight"),
    ("Which day comes after Monday?", "Tuesday comes after Monday.", "Tuesday"),
    ("Which day comes after Friday?", "Saturday comes after Friday.", "Saturday"),
)
_ROLES = ("a cook", "a pilot", "a helpful robot", "a gardener", "a sailor", "a teacher", "a tailor", "a baker")


def _rules(draw: Draw) -> tuple[str, Rule]:
    mark = draw.common_word().capitalize()
    choices: tuple[tuple[tuple[str, ...], Rule], ...] = (
        (
            ("Always answer in one word.", "Answer in one word.", "Answer with one word only."),
            lambda _, word: f"{word}.",
        ),
        (
            ("Answer in capital letters.", "Always answer in capitals.", "Write in capital letters only."),
            lambda text, _: text.upper(),
        ),
        (
            (f'End every answer with "{mark}."', f'Always end with "{mark}."'),
            lambda text, _: f"{text} {mark}.",
        ),
        (
            (f'Begin every answer with "{mark}:"', f'Start every answer with "{mark}:"'),
            lambda text, _: f"{mark}: {text}",
        ),
    )
    texts, rule = draw.one(choices)
    return draw.one(texts), rule


def follow(draw: Draw) -> Item:
    """Return one of the same questions under a rule, or without a rule that changes the answer."""

    def drawn() -> tuple[str, str, str, str, Rule]:
        text, rule = _rules(draw) if draw.chance(0.9) else ("Answer in a sentence.", lambda answer, _: answer)
        return (text, *draw.one(_PLAIN), rule)

    text, question, sentence, word, rule = draw.fresh(drawn, lambda each: each[0] + each[1])
    answer = rule(sentence, word)
    return asked(draw, "system", [system(text), user(question)], answer, text_is(answer))


def persona(draw: Draw) -> Item:
    name, role, place = draw.name(), draw.one(_ROLES), draw.one(words.CITIES)
    question, answer, key = draw.one(
        (
            ("Who are you?", f"I am {name}, {role} from {place}.", name),
            ("What is your name?", f"My name is {name}.", name),
            ("What are you?", f"I am {role}.", role),
            ("Where do you come from?", f"I come from {place}.", place),
        )
    )
    return asked(draw, "system", [system(f"You are {name}, {role} from {place}."), user(question)], answer, says(key))


def make(draw: Draw) -> Item:
    return persona(draw) if draw.chance(0.4) else follow(draw)
