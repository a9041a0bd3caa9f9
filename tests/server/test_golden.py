"""The exact bytes of every kind of answer, streamed and whole, and that each object is what the openai SDK expects.

A scripted engine makes the tokens; `created`, which differs from run to run, is put right before the comparison.
`GOLDEN=write python -m pytest tests/server/test_golden.py` writes the files anew, after a change that is meant: read
the diff.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel
from starlette.types import Message, Receive, Scope, Send

from mlx_backend.api.errors import SequenceFailed
from mlx_backend.api.interface import ModelInfo
from server.app import create_app
from server.config import Config, StreamConfig
from server.service.registry import ModelRegistry, ServedModel
from tests.fake_engine import FakeEngine, Script, prompted, spell
from tests.server.dialects.openai_chat.test_answers import CALL, WEATHER, Marked
from tests.server.goldens import Kind, compare
from tests.serving import wait_until

FOLDER = Path(__file__).parent / "golden"
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
PROMPT: dict[str, dict[str, Any]] = {
    COMPLETIONS: {"prompt": "ab"},
    CHAT: {"messages": [{"role": "user", "content": "hi"}]},
}
OURS = {"reasoning_content", "prompt_token_ids", "token_ids"}
"""What the SDK's types do not have."""


def said(text: str, **options: Any) -> Script:
    """Bytes and an end token, which says nothing."""
    return [spell(text + "\0", reason="stop", **options)]


def in_turn(*texts: str) -> Script:
    """A choice of each text."""
    choices = [spell(text + "\0", index=index, reason="stop") for index, text in enumerate(texts)]
    return [tuple(events) for events in zip(*choices, strict=True)]


COUNT = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}
FORMAT = {"response_format": {"type": "json_schema", "json_schema": {"name": "count", "schema": COUNT}}}
REASONING = "<think>\nhm\n</think>\n\n"
TOOLS = {"tools": [WEATHER]}
USAGE = {"stream_options": {"include_usage": True}}
CUT: Script = [spell("cd", reason=None), SequenceFailed("the sequence cannot go on")]

KINDS = {
    "completion": Kind(COMPLETIONS, said("né.")),
    "completion_length": Kind(COMPLETIONS, [spell("né")]),
    "completion_stop": Kind(COMPLETIONS, [spell("one, two", reason=None)], {"stop": [", "]}),
    "completion_logprobs": Kind(COMPLETIONS, said("né", logprob=-0.5), {"logprobs": 1}),
    "completion_echo": Kind(COMPLETIONS, said("cd"), {"echo": True}),
    "completion_echo_logprobs": Kind(
        COMPLETIONS, [(prompted(3, num_top=1),), *said("c", logprob=-0.5)], {"echo": True, "logprobs": 1}
    ),
    "completion_n": Kind(COMPLETIONS, in_turn("ab", "cd"), {"n": 2}),
    "completion_usage": Kind(COMPLETIONS, said("cd"), USAGE),
    "completion_token_ids": Kind(COMPLETIONS, said("cd"), {"return_token_ids": True}),
    "completion_error": Kind(COMPLETIONS, CUT, status=500),
    "chat": Kind(CHAT, said("né.")),
    "chat_length": Kind(CHAT, [spell("né")]),
    "chat_reasoning": Kind(CHAT, said(f"{REASONING}4")),
    "chat_tool_call": Kind(CHAT, said(CALL), TOOLS),
    "chat_parallel_tool_calls": Kind(CHAT, said(f"{REASONING}I ask. {CALL}\n{CALL}"), TOOLS),
    "chat_logprobs": Kind(CHAT, said("né", logprob=-0.5), {"logprobs": True, "top_logprobs": 1}),
    "chat_n": Kind(CHAT, in_turn("ab", "cd"), {"n": 2}),
    "chat_usage": Kind(CHAT, said(f"{REASONING}4"), USAGE),
    "chat_structured": Kind(CHAT, said('{"n":4}'), FORMAT),
    "chat_error": Kind(CHAT, CUT, status=500),
}


class Numbered(Marked):
    """Its calls have the ids call_0, call_1, ..."""

    def __init__(self) -> None:
        numbers = itertools.count()
        assert Marked.chat_format.calls is not None
        calls = replace(Marked.chat_format.calls, new_id=lambda: f"call_{next(numbers)}")
        self.chat_format = replace(Marked.chat_format, calls=calls)


class Listening:
    """An application whose first comment sets an event."""

    def __init__(self, app: Any, commented: asyncio.Event) -> None:
        self._app = app
        self._commented = commented

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def listen(message: Message) -> None:
            await send(message)
            if message.get("body", b"").startswith(b":"):
                self._commented.set()

        await self._app(scope, receive, listen)


async def ask(
    kind: Kind, *, stream: bool, commented: asyncio.Event | None = None, keep_alive_s: float = 60.0
) -> httpx.Response:
    """The answer to a kind of request under the id `golden`."""
    model = ServedModel("mock", FakeEngine(kind.script, info=ModelInfo(context_limit=4096, vocab_size=260)), Numbered)
    model.start()
    wait_until(lambda: model.tokenizer is not None)
    app = create_app(Config(stream=StreamConfig(keep_alive_s=keep_alive_s)), ModelRegistry([model]))
    transport = httpx.ASGITransport(Listening(app, commented or asyncio.Event()))
    body = {**PROMPT[kind.path], **kind.body, "stream": stream}
    if not stream:
        body.pop("stream_options", None)
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.post(kind.path, json=body, headers={"X-Request-Id": "golden"})
    finally:
        model.close()


def check_golden(name: str, written: bytes) -> None:
    """Compare with the file, or write it."""
    written = re.sub(rb'"created":\d+', b'"created":1700000000', written)
    compare(FOLDER / name, written)


@pytest.mark.parametrize("name", KINDS)
async def test_a_stream_is_what_it_was_and_what_the_sdk_expects(name: str) -> None:
    answer = await ask(KINDS[name], stream=True)
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    check_golden(f"{name}.sse", answer.content)
    *events, last = objects_of(answer.text)
    if KINDS[name].status == 200:
        assert last == "[DONE]"
    else:
        check_error(json.loads(last))
    for event in map(json.loads, events):
        check_known(validated(KINDS[name].path, event, is_chunk=True))


@pytest.mark.parametrize("name", KINDS)
async def test_a_whole_answer_is_what_it_was_and_what_the_sdk_expects(name: str) -> None:
    kind = KINDS[name]
    answer = await ask(kind, stream=False)
    assert answer.status_code == kind.status
    assert answer.headers["content-type"] == "application/json"
    check_golden(f"{name}.json", answer.content)
    if kind.status == 200:
        check_known(validated(kind.path, answer.json(), is_chunk=False))
    else:
        check_error(answer.json())


@pytest.mark.parametrize("path", PROMPT)
async def test_comments_before_the_first_token(path: str) -> None:
    commented = asyncio.Event()
    kind = Kind(path, [commented, *said("cd")])
    answer = await ask(kind, stream=True, commented=commented, keep_alive_s=0.01)
    comment = b": prefill 43%\n\n"
    assert answer.content.startswith(comment)
    written = comment + answer.content.replace(comment, b"")  # a slow machine may have had time for more of them
    check_golden(f"{'completion' if path == COMPLETIONS else 'chat'}_keep_alive.sse", written)


def test_every_file_is_of_a_kind() -> None:
    expected = {f"{name}.{end}" for name in KINDS for end in ("sse", "json")}
    expected |= {"completion_keep_alive.sse", "chat_keep_alive.sse"}
    assert {path.name for path in FOLDER.iterdir()} == expected


# --- what the SDK expects


def objects_of(text: str) -> list[str]:
    """The data of a stream's events."""
    *events, rest = text.split("\n\n")
    assert rest == ""
    return [event.removeprefix("data: ") for event in events]


def validated(path: str, written: dict[str, Any], *, is_chunk: bool) -> BaseModel:
    """As the SDK's own type, strictly."""
    if path == CHAT:
        return (ChatCompletionChunk if is_chunk else ChatCompletion).model_validate(written, strict=True)
    return Completion.model_validate(without_nulls(written, is_chunk=is_chunk), strict=True)


def without_nulls(completion: dict[str, Any], *, is_chunk: bool) -> dict[str, Any]:
    """The SDK's type has no null where OpenAI's answers have it: for a prompt's first token, and until the end."""
    for choice in completion["choices"]:
        for name in ("token_logprobs", "top_logprobs"):
            if choice["logprobs"] and choice["logprobs"][name]:
                choice["logprobs"][name] = [value for value in choice["logprobs"][name] if value is not None]
        if is_chunk and choice["finish_reason"] is None:
            choice["finish_reason"] = "stop"
    return completion


def check_known(found: BaseModel) -> None:
    """No field that the SDK does not know, in any depth, but ours."""
    assert set(found.model_extra or ()) <= OURS
    for inner in models_in(vars(found).values()):
        check_known(inner)


def models_in(values: Any) -> Iterator[BaseModel]:
    for value in values:
        if isinstance(value, BaseModel):
            yield value
        elif isinstance(value, list):
            yield from models_in(value)


def check_error(written: dict[str, Any]) -> None:
    assert written.keys() == {"error"}
    assert written["error"].keys() == {"message", "type", "param", "code"}
