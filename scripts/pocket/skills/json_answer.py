"""Answers as compact JSON with given keys and types, from one or two sentences with the values."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from scripts.pocket import words
from scripts.pocket.items import Item
from scripts.pocket.skills.base import Draw, asked
from scripts.pocket.skills.judge import json_is

Value = str | int | bool | list[str]
Field = tuple[str, Value, str]
"""A key, its value, and its wording in a sentence, to follow "X " or "X " … "and "."""
Facts = tuple[Field, list[Field]]
"""The field that names the subject, and the others."""

_TYPES = {str: "string", int: "integer", bool: "boolean", list: "list of strings"}


def _and(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _some(draw: Draw, choices: Sequence[str]) -> list[str]:
    return draw.rng.sample(choices, draw.rng.randint(1, 3))


def _person(draw: Draw) -> Facts:
    name, age, city, job = draw.name(), draw.rng.randint(5, 95), draw.one(words.CITIES), draw.one(words.JOBS)
    married, likes = draw.chance(0.5), _some(draw, words.FOODS)
    return ("name", name, name), [
        ("age", age, f"is {age} years old"),
        ("city", city, f"lives in {city}"),
        ("job", job, f"works as a {job}"),
        ("married", married, "is married" if married else "is not married"),
        ("likes", likes, f"likes {_and(likes)}"),
    ]


def _product(draw: Draw) -> Facts:
    product, price, weight = draw.common_word(), draw.rng.randint(1, 200), draw.rng.randint(1, 90)
    stocked, colours = draw.chance(0.5), _some(draw, words.COLOURS)
    return ("product", product, f"The {product}"), [
        ("price", price, f"costs {price} euros"),
        ("weight", weight, f"weighs {weight} kilos"),
        ("in_stock", stocked, "is in stock" if stocked else "is not in stock"),
        ("colours", colours, f"comes in {_and(colours)}"),
    ]


def _pet(draw: Draw) -> Facts:
    name, animal, age = draw.name(), draw.one(words.ANIMALS), draw.rng.randint(1, 19)
    colour, hungry, food = draw.one(words.COLOURS), draw.chance(0.5), _some(draw, words.FOODS)
    return ("name", name, name), [
        ("animal", animal, f"is a {animal}"),
        ("age", age, f"is {age} years old"),
        ("colour", colour, f"has the colour {colour}"),
        ("hungry", hungry, "is hungry" if hungry else "is not hungry"),
        ("eats", food, f"eats {_and(food)}"),
    ]


def _meeting(draw: Draw) -> Facts:
    host, day, hour, room = draw.name(), draw.one(words.DAYS), draw.rng.randint(7, 20), draw.rng.randint(1, 99)
    public, guests = draw.chance(0.5), draw.names(draw.rng.randint(1, 3))
    return ("host", host, f"The meeting of {host}"), [
        ("day", day, f"is on {day}"),
        ("hour", hour, f"starts at {hour}"),
        ("room", room, f"is in room {room}"),
        ("open", public, "is open" if public else "is not open"),
        ("guests", guests, f"has the guests {_and(guests)}"),
    ]


_SUBJECTS: tuple[Callable[[Draw], Facts], ...] = (_person, _product, _pet, _meeting)


def _described(draw: Draw, fields: Sequence[Field]) -> str:
    """Return `name (string) and age (integer)`."""
    return _and([f"{key} ({_TYPES[type(value)]})" for key, value, _ in fields])


def _schema(fields: Sequence[Field]) -> str:
    kinds = {
        key: {"type": "array", "items": {"type": "string"}}
        if isinstance(value, list)
        else {"type": _TYPES[type(value)]}
        for key, value, _ in fields
    }
    schema = {"type": "object", "properties": kinds, "required": list(kinds)}
    return json.dumps(schema, separators=(",", ":"))


def _request(draw: Draw, fields: Sequence[Field], text: str) -> str:
    if draw.chance(0.3):
        return f"Answer as JSON of this schema: {_schema(fields)}\n{text}"
    opening = draw.one(("Answer as JSON with the keys", "Answer as JSON with the keys", "Give me JSON with the keys"))
    described = _described(draw, fields)
    return f"{text}\n{opening} {described}." if draw.chance(0.2) else f"{opening} {described}: {text}"


def make(draw: Draw) -> Item:
    subject, others = draw.one(_SUBJECTS)(draw)
    told = draw.rng.sample(others, draw.rng.randint(2, len(others)))
    text = f"{subject[2]} {_and([said for _, _, said in told])}."
    fields = draw.rng.sample(told, min(len(told), draw.rng.randint(1, 3)))
    if len(fields) < 2 or draw.chance(0.7):
        fields.insert(0, subject)
    if draw.chance(0.2):
        draw.rng.shuffle(fields)
    value = {key: each for key, each, _ in fields}
    answer = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    return asked(draw, "json_answer", _request(draw, fields, text), answer, json_is(value))
