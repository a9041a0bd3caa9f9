"""The `openai` SDK's Responses against Pippin: a stream, a tool and its result, a structured answer.

make serve                                           # in one terminal
.venv/bin/python examples/openai_responses.py        # in another; or give another address
"""

from __future__ import annotations

import json
import sys
from typing import Any

from openai import OpenAI
from pydantic import BaseModel


class Person(BaseModel):
    """What the structured answer is."""

    name: str
    age: int


WEATHER: Any = {
    "type": "function",
    "name": "get_weather",
    "description": "Weather in a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


def stream(client: OpenAI, model: str) -> None:
    """The answer as it is written, its thought in brackets."""
    question = "How many r's are in the word strawberry?"
    for event in client.responses.create(model=model, input=question, stream=True, temperature=0):
        if event.type == "response.reasoning_text.delta":
            print(f"[{event.delta}]", end="")
        elif event.type == "response.output_text.delta":
            print(event.delta, end="", flush=True)
    print()


def call_a_tool(client: OpenAI, model: str) -> None:
    """The model asks for a tool; its result goes back, and nothing else: the server has the rest."""
    first = client.responses.create(model=model, input="What is the weather in Paris?", tools=[WEATHER], temperature=0)
    (call,) = [item for item in first.output if item.type == "function_call"]
    print(f"called {call.name} with {call.arguments}")
    result = json.dumps({"sky": "sunny", "degrees": 21})
    second = client.responses.create(
        model=model,
        input=[{"type": "function_call_output", "call_id": call.call_id, "output": result}],
        previous_response_id=first.id,
        tools=[WEATHER],
        temperature=0,
    )
    print(second.output_text)
    client.responses.delete(first.id)


def parse(client: OpenAI, model: str) -> None:
    """An answer that is a Person, whatever the model."""
    answer = client.responses.parse(
        model=model,
        input='Answer as JSON with name and age: "Anna is 31."',
        text_format=Person,
        temperature=0,
        max_output_tokens=200,
    )
    print(repr(answer.output_parsed))


def main() -> None:
    """Run everything against the server of the first argument."""
    base_url = (sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8080") + "/v1"
    client = OpenAI(base_url=base_url, api_key="none")
    model = client.models.list().data[0].id
    stream(client, model)
    call_a_tool(client, model)
    parse(client, model)


if __name__ == "__main__":
    main()
