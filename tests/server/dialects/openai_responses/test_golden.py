"""The exact bytes of every kind of response, and that each object is what the openai SDK expects.

`GOLDEN=write python -m pytest` with this file writes them anew, after a change that is meant: read the diff.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from mlx_backend.api.errors import SequenceFailed
from server.dialects.openai_responses.schema import ResponseEvent, ResponseObject
from tests.fake_engine import spell
from tests.server.dialects.openai_chat.test_answers import CALL, WEATHER, scripted
from tests.server.goldens import Kind, compare
from tests.server.test_golden import COUNT, REASONING, Numbered, check_error, check_known, said

FOLDER = Path(__file__).parent / "golden"
PATH = "/v1/responses"
FLAT = {"type": "function", **WEATHER["function"]}
SHELL = {"type": "custom", "name": "shell", "description": "Runs a command"}
SPACE = {"type": "namespace", "name": "city", "description": "Of cities", "tools": [FLAT]}
LS = '<tool>{"name": "shell", "arguments": {"input": "ls -l"}}</tool>'
IN_SPACE = '<tool>{"name": "city__get_weather", "arguments": {"city": "Rome"}}</tool>'
FORMAT = {"format": {"type": "json_schema", "name": "count", "schema": COUNT, "strict": True}}
LOGPROBS = {"include": ["message.output_text.logprobs"], "top_logprobs": 1}
SUMMARY = {"reasoning": {"summary": "auto"}, "include": ["reasoning.encrypted_content"]}
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


KINDS = {
    "text": Kind(PATH, said("né.")),
    "empty": Kind(PATH, said("")),
    "incomplete": Kind(PATH, [spell("né")]),
    "reasoning": Kind(PATH, said(f"{REASONING}4")),
    "reasoning_summary": Kind(PATH, said(f"{REASONING}4"), SUMMARY),
    "function_call": Kind(PATH, said(CALL), {"tools": [FLAT]}),
    "parallel_calls": Kind(PATH, said(f"{REASONING}I ask. {CALL}\n{CALL}"), {"tools": [FLAT]}),
    "custom_tool_call": Kind(PATH, said(LS), {"tools": [SHELL, {"type": "web_search"}]}),
    "namespace_call": Kind(PATH, said(IN_SPACE), {"tools": [SPACE]}),
    "logprobs": Kind(PATH, said("né", logprob=-0.5), LOGPROBS),
    "structured": Kind(PATH, said('{"n":4}'), {"text": FORMAT}),
    "echo": Kind(PATH, said("a"), {"instructions": "Be brief.", "metadata": {"a": "b"}, "user": "u", "store": False}),
    "error": Kind(PATH, [spell("cd", reason=None), SequenceFailed("the sequence cannot go on")], status=500),
}


async def ask(kind: Kind) -> tuple[bytes, bytes]:
    """The answer streamed, and whole."""
    written = []
    async with scripted(kind.script, Numbered) as client:
        for stream in (True, False):
            answer = await client.post("/responses", json={"input": "hi", **kind.body, "stream": stream})
            assert answer.status_code == (200 if stream else kind.status)
            expected = "text/event-stream; charset=utf-8" if stream else "application/json"
            assert answer.headers["content-type"] == expected
            written.append(answer.content)
    return written[0], written[1]


def check_golden(name: str, written: bytes) -> None:
    """Compare with the file, or write it; without times and what is random in ids."""
    written = re.sub(rb'"(created_at|completed_at)":\d+', rb'"\1":1700000000', written)
    written = re.sub(rb"_[0-9a-f]{48}", b"_golden", written)
    compare(FOLDER / name, written)


@pytest.mark.parametrize("name", KINDS)
async def test_answers_are_what_they_were_and_what_the_sdk_expects(name: str) -> None:
    streamed, whole = await ask(KINDS[name])
    check_golden(f"{name}.sse", streamed)
    check_golden(f"{name}.json", whole)
    for block in streamed.decode().split("\n\n")[:-1]:
        event = json.loads(block.partition("\ndata: ")[2])
        ResponseEvent.model_validate(event)
        event.pop("name", None)  # of earlier versions of the SDK
        event.get("response", {}).pop("store", None)  # in OpenAI's answers, and not in the SDK's type
        without_status(event.get("item"), *event.get("response", {}).get("output", ()))
        check_known(EVENT.validate_python(event, strict=True))
    answer = json.loads(whole)
    if KINDS[name].status != 200:
        check_error(answer)
        return
    ResponseObject.model_validate(answer)
    del answer["store"]
    without_status(*answer["output"])
    check_known(Response.model_validate(answer, strict=True))


def without_status(*items: dict[str, Any] | None) -> None:
    """Take the status out of calls of custom tools: clients need it, and the SDK's type does not have it."""
    for item in items:
        if item is not None and item["type"] == "custom_tool_call":
            assert item.pop("status") in ("in_progress", "completed")


def test_every_file_is_of_a_kind() -> None:
    assert {path.name for path in FOLDER.iterdir()} == {f"{name}.{end}" for name in KINDS for end in ("sse", "json")}
