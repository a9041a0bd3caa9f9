"""Ollama's own Python package against Pippin: streaming, a thought, a tool, a structured answer.

make serve                                     # in one terminal
.venv/bin/python examples/ollama_sdk.py        # in another; or give another address
"""

from __future__ import annotations

import sys
from typing import Any

from ollama import Client
from pydantic import BaseModel


class Person(BaseModel):
    """What the structured answer is."""

    name: str
    age: int


def get_weather(city: str) -> str:
    """Weather in a city

    Args:
        city: its name
    """
    return '{"sky": "sunny", "degrees": 21}'


def asked(question: str) -> list[Any]:
    return [{"role": "user", "content": question}]


def stream(client: Client, model: str) -> None:
    """The answer as it is written, its thought in brackets."""
    question = asked("How many r's are in the word strawberry?")
    for part in client.chat(model, question, stream=True, options={"temperature": 0}):
        if part.message.thinking:
            print(f"[{part.message.thinking}]", end="")
        print(part.message.content, end="", flush=True)
    print(f" ({part.eval_count} tokens)")


def call(client: Client, model: str) -> None:
    """A function of this program, called by the model."""
    messages = asked("What is the weather in Paris?")
    message = client.chat(model, messages, tools=[get_weather], options={"temperature": 0}).message
    for each in message.tool_calls or ():
        print(f"calls {each.function.name} with {dict(each.function.arguments)}")
        result = {"role": "tool", "tool_name": each.function.name, "content": get_weather(**each.function.arguments)}
        messages += [message, result]
    print(client.chat(model, messages, tools=[get_weather], options={"temperature": 0}).message.content)


def parse(client: Client, model: str) -> None:
    """An answer in a form."""
    question = asked("Anna is 31 years old.")
    answer = client.chat(model, question, format=Person.model_json_schema(), options={"temperature": 0})
    print(repr(Person.model_validate_json(answer.message.content or "")))


def main(url: str = "http://127.0.0.1:8080") -> None:
    client = Client(host=url)
    model = client.list().models[0].model or ""
    stream(client, model)
    call(client, model)
    parse(client, model)


if __name__ == "__main__":
    main(*sys.argv[1:])
