"""Several short questions of different kinds in one conversation.

A client sends earlier answers back without their reasoning. Such an answer must not be trained on, or the model would
learn to answer without reasoning: its message has `"weight": 0`, as in OpenAI's fine-tuning format.
"""

from __future__ import annotations

from dataclasses import replace

from scripts.pocket.items import Item
from scripts.pocket.skills import arithmetic, chinese, decimals, identity, letters, lists, unknown
from scripts.pocket.skills.base import Draw, Message

_PARTS = (identity, identity, letters, letters, arithmetic, decimals, lists, unknown, chinese)


def _sent_back(message: Message) -> Message:
    if "reasoning_content" not in message:
        return message
    return {"role": "assistant", "content": message["content"], "weight": 0}


def make(draw: Draw) -> Item:
    """Return two to four turns; the last is judged as in its own skill."""
    switched = replace(draw, thinking=draw.thinks(0.06))
    count = draw.rng.randint(2, 4)
    turns: list[Item] = []
    while len(turns) < count:
        item = draw.one(_PARTS).make(switched)
        if item.messages[0]["role"] == "user":
            turns.append(item)
    last = turns.pop()
    earlier = [_sent_back(message) for turn in turns for message in turn.messages]
    return replace(last, skill="chat", messages=(*earlier, *last.messages))
