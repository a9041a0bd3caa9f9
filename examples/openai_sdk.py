"""The `openai` SDK against Pippin: streaming, tools, a structured answer, asynchronous calls.

make serve                                     # in one terminal
.venv/bin/python examples/openai_sdk.py        # in another; or give another address
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel


class Person(BaseModel):
    """What the structured answer is."""

    name: str
    age: int


WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather in a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def stream(client: OpenAI, model: str) -> None:
    """The answer as it is written, its reasoning in brackets."""
    question = "How many r's are in the word strawberry?"
    for chunk in client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": question}], stream=True, temperature=0
    ):
        delta = chunk.choices[0].delta
        thought = (delta.model_extra or {}).get("reasoning_content")
        print(f"[{thought}]" if thought else delta.content or "", end="", flush=True)
    print()


def call_a_tool(client: OpenAI, model: str) -> None:
    """The model asks for a tool; its result goes back; the model answers."""
    messages: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]
    first = client.chat.completions.create(model=model, messages=messages, tools=[WEATHER], temperature=0)
    calls: Any = first.choices[0].message.tool_calls
    call = calls[0]
    print(f"called {call.function.name} with {call.function.arguments}")
    result = json.dumps({"sky": "sunny", "degrees": 21})
    messages += [first.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": result}]
    second = client.chat.completions.create(model=model, messages=messages, tools=[WEATHER], temperature=0)
    print(second.choices[0].message.content)


def parse(client: OpenAI, model: str) -> None:
    """An answer that is a Person, whatever the model."""
    answer = client.chat.completions.parse(
        model=model,
        messages=[{"role": "user", "content": 'Answer as JSON with name and age: "Anna is 31."'}],
        response_format=Person,
        temperature=0,
        max_tokens=200,
    )
    print(repr(answer.choices[0].message.parsed))


async def ask_at_once(client: AsyncOpenAI, model: str) -> None:
    """Several questions, answered together."""
    answers = await asyncio.gather(
        *(client.completions.create(model=model, prompt=f"{n} +", max_tokens=4, temperature=0) for n in range(4))
    )
    print([answer.choices[0].text for answer in answers])


def main() -> None:
    """Run everything against the server of the first argument."""
    base_url = (sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8080") + "/v1"
    client = OpenAI(base_url=base_url, api_key="none")
    model = client.models.list().data[0].id
    stream(client, model)
    call_a_tool(client, model)
    parse(client, model)
    asyncio.run(ask_at_once(AsyncOpenAI(base_url=base_url, api_key="none"), model))


if __name__ == "__main__":
    main()
