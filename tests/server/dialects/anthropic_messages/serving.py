"""A server in process for the tests of `/v1/messages`: an engine with a script, and the anthropic SDK."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import anthropic
import httpx2
from starlette.types import Message, Receive, Scope, Send

from mlx_backend.api.interface import ModelInfo
from server.app import create_app
from server.config import Config
from server.service.registry import ModelRegistry, ServedModel
from tests.fake_engine import FakeEngine, Script
from tests.server.dialects.openai_chat.test_answers import Marked
from tests.serving import wait_until

PATH = "/v1/messages"
BODY: dict[str, Any] = {"model": "mock", "max_tokens": 1000, "messages": [{"role": "user", "content": "hi"}]}


class Shown(Marked):
    """Its template writes all that it is given; its calls have the ids call_0, call_1, ..."""

    def __init__(self) -> None:
        self.numbers = itertools.count()
        assert Marked.chat_format.calls is not None
        calls = replace(Marked.chat_format.calls, new_id=lambda: f"call_{next(self.numbers)}")
        self.chat_format = replace(Marked.chat_format, calls=calls)

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        template_kwargs: Mapping[str, Any],
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> str:
        return json.dumps([list(messages), dict(template_kwargs), list(tools)], ensure_ascii=False)


class Server:
    """One for a module; each test plays its script."""

    def __init__(self) -> None:
        self.engine = FakeEngine(info=ModelInfo(context_limit=4096, vocab_size=260))
        self.tokenizer = Shown()
        self.model = ServedModel("mock", self.engine, lambda: self.tokenizer, aliases=("claude-*",))
        self.model.start()
        wait_until(lambda: self.model.tokenizer is not None)
        self.app = create_app(Config(), ModelRegistry([self.model]))
        self.pinged = asyncio.Event()
        transport = httpx2.ASGITransport(self._listen)
        self.client = httpx2.AsyncClient(transport=transport, base_url="http://localhost")
        self.sdk = anthropic.AsyncAnthropic(
            base_url="http://localhost", api_key="k", http_client=self.client, max_retries=0
        )

    def play(self, script: Script) -> None:
        """Have the next answers written by `script`."""
        self.engine.script, self.engine.refusal = script, None
        self.tokenizer.numbers = itertools.count()

    @property
    def prompt(self) -> str:
        """The text of the last prompt."""
        return bytes(self.engine.requests[-1].prompt_ids).decode()

    async def aclose(self) -> None:
        await self.client.aclose()
        self.model.close()

    async def _listen(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def listen(message: Message) -> None:
            await send(message)
            if b"event: ping" in message.get("body", b""):
                self.pinged.set()

        await self.app(scope, receive, listen)


def events_of(text: str) -> list[tuple[str, Any]]:
    """Name and data of each event of a stream."""
    *events, rest = text.split("\n\n")
    assert rest == ""
    found = []
    for event in events:
        lines = [line for line in event.split("\n") if not line.startswith(":")]
        assert [line.partition(": ")[0] for line in lines] == ["event", "data"]
        found.append((lines[0].removeprefix("event: "), json.loads(lines[1].removeprefix("data: "))))
    return found
