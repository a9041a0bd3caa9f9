"""The `anthropic` SDK against Pippin: streaming, thoughts, tools, a count of tokens.

make serve                                        # in one terminal
.venv/bin/python examples/anthropic_sdk.py        # in another; or give another address
"""

from __future__ import annotations

import json
import sys
from typing import Any

from anthropic import Anthropic

WEATHER: Any = {
    "name": "get_weather",
    "description": "Weather in a city",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
GREEDY = {"temperature": 0}


def stream(client: Anthropic, model: str) -> None:
    """The answer as it is written, its thoughts in brackets."""
    question: Any = [{"role": "user", "content": "How many r's are in the word strawberry?"}]
    with client.messages.stream(model=model, messages=question, max_tokens=500, extra_body=GREEDY) as events:
        for event in events:
            if event.type == "thinking":
                print(f"[{event.thinking}]", end="", flush=True)
            elif event.type == "text":
                print(event.text, end="", flush=True)
    print()


def call_a_tool(client: Anthropic, model: str) -> None:
    """The model asks for a tool; its result goes back; the model answers."""
    messages: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]
    asked: dict[str, Any] = {"model": model, "max_tokens": 500, "tools": [WEATHER], "extra_body": GREEDY}
    first = client.messages.create(messages=messages, **asked)
    call: Any = next(block for block in first.content if block.type == "tool_use")
    print(f"called {call.name} with {json.dumps(call.input)}")
    result = {"type": "tool_result", "tool_use_id": call.id, "content": json.dumps({"sky": "sunny", "degrees": 21})}
    messages += [{"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
    second = client.messages.create(messages=messages, **asked)
    print("".join(block.text for block in second.content if block.type == "text"))
    counted = client.messages.count_tokens(model=model, messages=messages, tools=[WEATHER])
    used = second.usage.input_tokens + (second.usage.cache_read_input_tokens or 0)
    print(f"the prompt has {counted.input_tokens} tokens, used: {used}")


def main() -> None:
    """Run everything against the server of the first argument."""
    base_url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8080"
    client = Anthropic(base_url=base_url, api_key="none")
    model = client.models.list().data[0].id
    stream(client, model)
    call_a_tool(client, model)


if __name__ == "__main__":
    main()
