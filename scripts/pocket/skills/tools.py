"""Calls of a described tool with the right arguments, answers from its result, and answers without a tool."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from scripts.pocket import words
from scripts.pocket.items import Item
from scripts.pocket.skills import identity
from scripts.pocket.skills.base import Draw, Message, assistant, user
from scripts.pocket.skills.judge import call_is, calls_nothing, text_is

NO_TOOL = "I have no tool for that."


@dataclass(frozen=True, slots=True)
class Use:
    """A question that needs the tool, its arguments, the tool's result, and the answer from it."""

    question: str
    arguments: Mapping[str, Any]
    result: str
    answer: str


@dataclass(frozen=True, slots=True)
class Tool:
    name: str
    description: str
    parameters: Mapping[str, str]
    """JSON type of each parameter; all are required."""
    use: Callable[[Draw], Use]

    def described(self) -> Mapping[str, Any]:
        properties = {name: {"type": kind} for name, kind in self.parameters.items()}
        schema = {"type": "object", "properties": properties, "required": list(properties)}
        function = {"name": self.name, "description": self.description, "parameters": schema}
        return {"type": "function", "function": function}


def _weather(draw: Draw) -> Use:
    city, degrees, sky = (
        draw.one(words.CITIES),
        draw.rng.randint(0, 35),
        draw.one(("sunny", "cloudy", "rainy", "windy")),
    )
    question = draw.one(("What is the weather in {}?", "How is the weather in {}?", "What's the weather like in {}?"))
    result = json.dumps({"sky": sky, "degrees": degrees})
    return Use(question.format(city), {"city": city}, result, f"In {city} it is {sky} at {degrees} degrees.")


def _add(draw: Draw) -> Use:
    a, b = draw.fresh(lambda: (draw.rng.randrange(1000), draw.rng.randrange(1000)))
    question = draw.one(("Add {a} and {b}.", "What is {a} plus {b}?", "Add {a} to {b}."))
    first, second = (b, a) if question.startswith("Add {a} to") else (a, b)
    return Use(question.format(a=first, b=second), {"a": first, "b": second}, str(a + b), f"The sum is {a + b}.")


def _search(draw: Draw) -> Use:
    query = draw.common_word() if draw.chance(0.5) else f"{draw.one(words.COLOURS)} {draw.common_word()}"
    pages = draw.rng.randint(2, 99)
    question = draw.one(("Search for {}.", "Search the web for {}.", "Find pages about {}."))
    return Use(question.format(query), {"query": query}, f"{pages} pages", f"I found {pages} pages about {query}.")


def _timer(draw: Draw) -> Use:
    minutes = draw.rng.randint(2, 120)
    question = draw.one(("Set a timer for {} minutes.", "Start a timer of {} minutes.", "Wake me in {} minutes."))
    return Use(question.format(minutes), {"minutes": minutes}, "ok", f"The timer is set for {minutes} minutes.")


def _translate(draw: Draw) -> Use:
    text = " ".join(draw.common_word() for _ in range(draw.rng.randint(1, 3)))
    language = draw.one(("French", "German", "Spanish", "Italian", "Polish", "Turkish", "Chinese", "Swedish"))
    foreign = " ".join(words.syllables(draw.rng, 3, 7) for _ in text.split())
    question = draw.one(('Translate "{}" into {}.', 'How do you say "{}" in {}?'))
    arguments = {"text": text, "language": language}
    return Use(question.format(text, language), arguments, foreign, f"In {language}: {foreign}")


def _convert(draw: Draw) -> Use:
    amount, result = draw.rng.randint(1, 500), draw.rng.randint(1, 999)
    units = draw.one((("dollars", "euros", "pounds", "yen"), ("miles", "metres", "feet"), ("litres", "cups", "pints")))
    source, target = draw.rng.sample(units, 2)
    question = draw.one(("Convert {} {} to {}.", "How much are {} {} in {}?")).format(amount, source, target)
    arguments = {"amount": amount, "from": source, "to": target}
    return Use(question, arguments, str(result), f"{amount} {source} are {result} {target}.")


def _message(draw: Draw) -> Use:
    name = draw.name()
    text = " ".join(draw.common_word() for _ in range(draw.rng.randint(1, 4)))
    question = draw.one(('Send {} the message "{}".', 'Write to {}: "{}"')).format(name, text)
    return Use(question, {"to": name, "text": text}, "sent", f"Your message to {name} is sent.")


def _time(draw: Draw) -> Use:
    city, time = draw.one(words.CITIES), f"{draw.rng.randrange(24):02d}:{draw.rng.randrange(60):02d}"
    question = draw.one(("What time is it in {}?", "Tell me the time in {}."))
    return Use(question.format(city), {"city": city}, time, f"It is {time} in {city}.")


def _phone(draw: Draw) -> Use:
    name, number = draw.name(), f"{draw.rng.randrange(10**6):06d}"
    question = draw.one(("What is the phone number of {}?", "Find the phone number of {}."))
    return Use(question.format(name), {"name": name}, number, f"The phone number of {name} is {number}.")


def _table(draw: Draw) -> Use:
    people, day = draw.rng.randint(2, 12), draw.one(words.DAYS)
    question = draw.one(("Book a table for {} people on {}.", "Reserve a table for {} people on {}."))
    return Use(question.format(people, day), {"people": people, "day": day}, "ok", f"The table is booked for {day}.")


TOOLS = (
    Tool("get_weather", "Weather in a city", {"city": "string"}, _weather),
    Tool("add", "Adds two numbers", {"a": "integer", "b": "integer"}, _add),
    Tool("search", "Searches the web", {"query": "string"}, _search),
    Tool("set_timer", "Sets a timer", {"minutes": "integer"}, _timer),
    Tool("translate", "Translates a text", {"text": "string", "language": "string"}, _translate),
    Tool("convert", "Converts units", {"amount": "integer", "from": "string", "to": "string"}, _convert),
    Tool("send_message", "Sends a message", {"to": "string", "text": "string"}, _message),
    Tool("get_time", "Time in a city", {"city": "string"}, _time),
    Tool("find_phone", "Phone number of a person", {"name": "string"}, _phone),
    Tool("book_table", "Books a table", {"people": "integer", "day": "string"}, _table),
)


def _made_up(draw: Draw) -> Tool:
    """Return a tool known only from its description."""
    what, key = draw.common_word(), draw.one(("name", "city", "item", "day"))

    def use(draw: Draw) -> Use:
        of = {"name": draw.name, "city": lambda: draw.one(words.CITIES), "item": draw.common_word}.get(
            key, lambda: draw.one(words.DAYS)
        )()
        result = str(draw.rng.randrange(1000))
        return Use(f"What is the {what} of {of}?", {key: of}, result, f"The {what} of {of} is {result}.")

    return Tool(f"get_{what}", f"The {what} of a {key}", {key: "string"}, use)


def _offered(draw: Draw) -> list[Tool]:
    """Return one to three different tools."""
    count = draw.rng.randint(1, 3)
    tools = draw.rng.sample(TOOLS, count)
    if draw.chance(0.35):
        tools[-1] = _made_up(draw)
    draw.rng.shuffle(tools)
    return tools


def call(tool: Tool, use: Use) -> Message:
    """Return the assistant's turn with the call; the arguments are an object, as chat templates expect."""
    function = {"name": tool.name, "arguments": dict(use.arguments)}
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": "call_1", "type": "function", "function": function}],
    }


def _scene(draw: Draw) -> tuple[list[Tool], Tool, Use]:
    """Return tools, the one that is needed, and a use of it whose question is in the split."""

    def drawn() -> tuple[list[Tool], Tool, Use]:
        tools = _offered(draw)
        tool = draw.one(tools)
        return tools, tool, tool.use(draw)

    return draw.fresh(drawn, lambda scene: scene[2].question)


def _item(draw: Draw, tools: list[Tool], messages: list[Message], right: Callable[[str], bool]) -> Item:
    return Item(
        skill="tools",
        messages=tuple(messages),
        tools=tuple(tool.described() for tool in tools),
        enable_thinking=draw.thinks(0.15),
        is_right=right,
    )


def calling(draw: Draw) -> Item:
    tools, tool, use = _scene(draw)
    return _item(draw, tools, [user(use.question), call(tool, use)], call_is(tool.name, use.arguments))


def answering(draw: Draw) -> Item:
    """Return an item with the tool's result, which the answer reports."""
    tools, tool, use = _scene(draw)
    result = {"role": "tool", "tool_call_id": "call_1", "content": use.result}
    messages = [user(use.question), call(tool, use), result, assistant(use.answer)]
    return _item(draw, tools, messages, text_is(use.answer))


def without(draw: Draw) -> Item:
    """Return small talk, or a question that none of the tools can answer."""
    tools = _offered(draw)
    if draw.chance(0.35):
        talk = identity.make(draw)
        assert talk.is_right is not None
        return _item(draw, tools, list(talk.messages), calls_nothing(talk.is_right))
    others = [tool for tool in TOOLS if tool not in tools]
    question = draw.fresh(lambda: draw.one(others).use(draw).question)
    return _item(draw, tools, [user(question), assistant(NO_TOOL)], calls_nothing(text_is(NO_TOOL)))


def make(draw: Draw, kind: str | None = None) -> Item:
    """Return an item; `kind` is call, answer or none."""
    kind = kind or draw.one(("call",) * 5 + ("answer",) * 2 + ("none",) * 4)
    return {"call": calling, "answer": answering, "none": without}[kind](draw)
