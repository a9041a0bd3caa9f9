"""The exact bytes of every kind of answer below `/api`, streamed and whole.

Times and durations, which differ from run to run, are put right before the comparison. `GOLDEN=write` writes the files
anew, after a change that is meant: read the diff.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import ollama
import pytest
from starlette.types import Message, Receive, Scope, Send

from mlx_backend.api.errors import SequenceFailed
from server.dialects.ollama.published import OllamaChatAnswer, OllamaGenerateAnswer
from tests.fake_engine import Script, spell
from tests.server.dialects.ollama.served import Served, said, serving
from tests.server.dialects.openai_chat.test_answers import CALL, WEATHER
from tests.server.goldens import Kind, compare

FOLDER = Path(__file__).parent / "golden"
CHAT, GENERATE = "/api/chat", "/api/generate"
BODY: dict[str, dict[str, Any]] = {
    CHAT: {"messages": [{"role": "user", "content": "hi"}]},
    GENERATE: {"prompt": "hi"},
}
REASONING = "<think>\nhm\n</think>\n\n"
CUT: Script = [spell("cd", reason=None), SequenceFailed("the sequence cannot go on")]
OURS = {"id", "index", "bytes"}
"""What Ollama's answers have and the client's types do not."""


KINDS = {
    "chat": Kind(CHAT, said("né.")),
    "chat_length": Kind(CHAT, [spell("né")]),
    "chat_stop": Kind(CHAT, [spell("one, two", reason=None)], {"options": {"stop": [", "]}}),
    "chat_thinking": Kind(CHAT, said(f"{REASONING}4")),
    "chat_tool_calls": Kind(CHAT, said(f"{REASONING}I ask. {CALL}\n{CALL}"), {"tools": [WEATHER]}),
    "chat_logprobs": Kind(CHAT, said("né", logprob=-0.5), {"logprobs": True, "top_logprobs": 1}),
    "chat_error": Kind(CHAT, CUT, status=500),
    "chat_load": Kind(CHAT, [], {"messages": []}),
    "generate": Kind(GENERATE, said("né.")),
    "generate_thinking": Kind(GENERATE, said(f"{REASONING}4")),
    "generate_raw": Kind(GENERATE, said(f"{REASONING}4"), {"raw": True}),
    "generate_logprobs": Kind(GENERATE, said("né", logprob=-0.5), {"logprobs": True}),
    "generate_error": Kind(GENERATE, CUT, status=500),
    "generate_load": Kind(GENERATE, [], {"prompt": ""}),
}


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving() as served:
        yield served


def check_golden(name: str, written: bytes) -> None:
    """Compare with the file, or write it."""
    written = re.sub(rb'"created_at":"[-0-9]{10}T[0-9:]{8}\.[0-9]{6}Z"', b'"created_at":"NOW"', written)
    written = re.sub(rb'_duration":[0-9]+', b'_duration":1', written)
    compare(FOLDER / name, written)


class Listening:
    """An application whose first line sets an event."""

    def __init__(self, app: Any, written: asyncio.Event) -> None:
        self._app = app
        self._written = written

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def listen(message: Message) -> None:
            await send(message)
            if message.get("body"):
                self._written.set()

        await self._app(scope, receive, listen)


@pytest.mark.parametrize("is_streamed", [True, False])
@pytest.mark.parametrize("name", KINDS)
async def test_an_answer_is_what_it_was_and_what_the_client_expects(
    served: Served, name: str, is_streamed: bool
) -> None:
    kind = KINDS[name]
    served.write(kind.script)
    async with served.http() as client:
        answer = await client.post(kind.path, json={**BODY[kind.path], **kind.body, "stream": is_streamed})
    assert answer.status_code == (200 if is_streamed else kind.status)
    check_golden(f"{name}.{'ndjson' if is_streamed else 'json'}", answer.content)
    objects = [json.loads(line) for line in answer.text.splitlines()]
    if kind.status != 200:
        assert objects.pop() == {"error": "the sequence cannot go on"}
    response = ollama.ChatResponse if kind.path == CHAT else ollama.GenerateResponse
    published = OllamaChatAnswer if kind.path == CHAT else OllamaGenerateAnswer
    for each in objects:
        published.model_validate(each, strict=True)
        found = response.model_validate(each)
        assert unknown(each, found.model_dump(exclude_none=True)) <= OURS
    is_whole = kind.status == 200
    assert [each["done"] for each in objects] == [False] * (len(objects) - is_whole) + [True] * is_whole


async def test_a_line_for_a_client_that_would_not_wait_longer() -> None:
    with serving(keep_alive_s=0.01) as served:
        for path in (CHAT, GENERATE):
            begins = asyncio.Event()
            served.write([begins, *said("cd")])
            transport = httpx.ASGITransport(Listening(served.app, begins))
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
                first, *rest = (await client.post(path, json=BODY[path])).text.splitlines(keepends=True)
            others = [line for line in rest if '"done":true' in line or '":""' not in line]  # there may be more of them
            check_golden(f"{path.rpartition('/')[2]}_silence.ndjson", "".join((first, *others)).encode())


def test_every_file_is_of_a_kind() -> None:
    expected = {f"{name}.{end}" for name in KINDS for end in ("ndjson", "json")}
    expected |= {"chat_silence.ndjson", "generate_silence.ndjson"}
    assert {path.name for path in FOLDER.iterdir()} == expected


def unknown(written: Any, known: Any) -> set[str]:
    """The names of the fields that the client's types do not have, in any depth; a call's arguments are its own."""
    if isinstance(written, dict):
        found = written.keys() - known.keys()
        inner = [(value, known[name]) for name, value in written.items() if name in known and name != "arguments"]
        return set(found).union(*(unknown(*pair) for pair in inner))
    if isinstance(written, list):
        return set().union(*(unknown(*pair) for pair in zip(written, known, strict=False)))
    return set()
