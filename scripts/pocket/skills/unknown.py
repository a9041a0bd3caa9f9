"""Polite refusals of questions that a very small model cannot answer."""

from __future__ import annotations

from scripts.pocket import words
from scripts.pocket.items import Item
from scripts.pocket.skills.base import Draw, asked

ANSWER = "I am a very small model and do not know that."

_QUESTIONS = (
    "What is the capital of {place}?",
    "Who is the president of {place}?",
    "How many people live in {place}?",
    "What happened in {place} today?",
    "What is the history of {place}?",
    "What is the weather in {place}?",
    "What time is it in {place}?",
    "Write an essay about {word}.",
    "Write a poem about a {word}.",
    "Write a story about a {word} and a {word2}.",
    "Tell me a joke about a {word}.",
    "Why does a {word} exist?",
    "How do I make a {word}?",
    "How does a {word} work?",
    "Who invented the {word}?",
    "What is a {word}?",
    "Explain {word} to me.",
    "What did {name} do yesterday?",
    "Who is {name}?",
    "What is the news about {place}?",
    "Who wrote the book {word} and {word2}?",
    "Write a program that draws a {word}.",
    "Why is the {word} {colour}?",
)
_COUNTRIES = words.split(
    "France Spain Italy Germany Japan China India Brazil Peru Chile Canada Mexico Egypt Kenya Ghana Norway Sweden "
    "Finland Poland Greece Turkey Austria Ireland Iceland Portugal Morocco Cuba Nepal Vietnam Australia"
)


def question(draw: Draw) -> str:
    return draw.one(_QUESTIONS).format(
        place=draw.one(_COUNTRIES if draw.chance(0.6) else words.CITIES),
        word=draw.common_word(),
        word2=draw.common_word(),
        name=draw.name(),
        colour=draw.one(words.COLOURS),
    )


def make(draw: Draw) -> Item:
    asked_for = draw.fresh(lambda: question(draw))
    return asked(draw, "unknown", asked_for, ANSWER, lambda text: "not know" in text)
