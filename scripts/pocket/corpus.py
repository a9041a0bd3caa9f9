"""The mixture: the skills, an item of one, and the endless stream that a model is trained on.

Independent of tokenizer and model. Train and test share no material: see `skills.base.split_of`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import exp, log
from random import Random
from typing import Any

from scripts.pocket.items import Item, Split
from scripts.pocket.skills import (
    arithmetic,
    chat,
    chinese,
    decimals,
    identity,
    json_answer,
    letters,
    lists,
    recall,
    system,
    tools,
    unknown,
)
from scripts.pocket.skills.base import Draw


@dataclass(frozen=True, slots=True)
class Skill:
    """Function that makes an item, and the skill's share of the stream; the shares are relative."""

    make: Callable[..., Item]
    weight: float


SKILLS: Mapping[str, Skill] = {
    "letters": Skill(letters.make, 0.15),
    "recall": Skill(recall.make, 0.12),
    "arithmetic": Skill(arithmetic.make, 0.2),
    "decimals": Skill(decimals.make, 0.14),
    "json_answer": Skill(json_answer.make, 0.17),
    "tools": Skill(tools.make, 0.13),
    "lists": Skill(lists.make, 0.07),
    "system": Skill(system.make, 0.045),
    "identity": Skill(identity.make, 0.04),
    "unknown": Skill(unknown.make, 0.015),
    "chinese": Skill(chinese.make, 0.07),
    "chat": Skill(chat.make, 0.03),
}


def generate(skill: str, split: Split, rng: Random, *, thinking: bool | None = None, **options: Any) -> Item:
    """Return one item. `thinking` fixes the switch, None draws it; `options` are those of the skill's `make`."""
    return SKILLS[skill].make(Draw(split, rng, thinking), **options)


def approximate_length(item: Item) -> int:
    """Return the approximate number of tokens of the whole conversation, with the marks of its turns."""
    texts = [str(value) for message in item.messages for key, value in message.items() if key != "role"]
    texts += map(str, item.tools)
    return sum(map(recall.approximate_tokens, texts)) + 6 * len(item.messages)


def _log_uniform(rng: Random, low: int, high: int) -> int:
    return round(exp(rng.uniform(log(low), log(high))))


def _recall_options(rng: Random, tokens: tuple[int, int]) -> dict[str, Any]:
    """Leave a fifth to `recall` itself: facts told over several turns, missing names."""
    return {} if rng.random() < 0.2 else {"context_tokens": _log_uniform(rng, *tokens)}


def stream(
    split: Split,
    seed: int,
    weights: Mapping[str, float] | None = None,
    *,
    recall_tokens: tuple[int, int] = (48, 512),
    max_context_tokens: int = 4096,
) -> Iterator[Item]:
    """Yield items endlessly, the same for the same arguments.

    `weights` replaces the shares by skill; a skill that it does not name does not occur. Contexts of recall are
    log-uniform in `recall_tokens`. Items longer than `max_context_tokens` (approximately counted) are left out.
    """
    rng = Random(seed)
    shares = weights or {name: skill.weight for name, skill in SKILLS.items()}
    names, values = list(shares), list(shares.values())
    longest = min(recall_tokens[1], max_context_tokens)
    while True:
        (name,) = rng.choices(names, values)
        options = _recall_options(rng, (min(recall_tokens[0], longest), longest)) if name == "recall" else {}
        item = generate(name, split, rng, **options)
        if approximate_length(item) <= max_context_tokens:
            yield item
