"""Common parts of the skills: draws that stay in their split, and the parts of a conversation.

Holds the rule of the splits (a hash of the material); independent of the skills.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, TypeVar

from scripts.pocket import words
from scripts.pocket.items import Item, Split

T = TypeVar("T")
Message = Mapping[str, Any]
Check = Callable[[str], bool]

_ALWAYS_TEST = frozenset({"strawberry", "decimals 9.11 9.8"})  # the first things people try are never trained on


def split_of(material: str) -> Split:
    """Return the split of `material` (a word, a name, a pair of operands), ignoring its case."""
    material = material.lower()
    return "test" if material in _ALWAYS_TEST or zlib.crc32(material.encode()) % 10 == 0 else "train"


@dataclass(frozen=True, slots=True)
class Draw:
    """Random material of one split. `thinking` fixes the switch of the chat template; None draws it."""

    split: Split
    rng: Random
    thinking: bool | None = None

    def fresh(self, make: Callable[[], T], material: Callable[[T], str] = str) -> T:
        """Return the first result of `make` whose material is in this split."""
        while True:
            value = make()
            if split_of(material(value)) == self.split:
                return value

    def one(self, choices: Sequence[T]) -> T:
        return self.rng.choice(choices)

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def word(self) -> str:
        return self.fresh(lambda: words.spelling_word(self.rng))

    def common_word(self) -> str:
        return self.fresh(lambda: self.rng.choice(words.WORDS))

    def name(self) -> str:
        return self.fresh(lambda: words.given_name(self.rng))

    def names(self, count: int) -> list[str]:
        """Return `count` different names."""
        found: dict[str, None] = {}
        while len(found) < count:
            found[self.name()] = None
        return list(found)

    def code(self) -> str:
        return self.fresh(lambda: words.code(self.rng))

    def thinks(self, switched_off: float) -> bool:
        return self.thinking if self.thinking is not None else not self.chance(switched_off)


def system(content: str) -> Message:
    return {"role": "system", "content": content}


def user(content: str) -> Message:
    return {"role": "user", "content": content}


def assistant(content: str, reasoning: str | None = None) -> Message:
    message = {"role": "assistant", "content": content}
    return message if reasoning is None else {**message, "reasoning_content": reasoning}


def asked(
    draw: Draw, skill: str, question: str | Sequence[Message], answer: str, right: Check, reasoning: str | None = None
) -> Item:
    """Return one question, or messages that end in one, and the answer; reasoning only if the switch is on."""
    thinking = draw.thinks(0.06 if reasoning else 0.15)
    before = (user(question),) if isinstance(question, str) else tuple(question)
    last = assistant(answer, reasoning if thinking else None)
    return Item(skill=skill, messages=(*before, last), enable_thinking=thinking, is_right=right)
