"""An application over a scripted engine whose script each test chooses, and the official client over it, in process."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import httpx
import ollama

from mlx_backend.api.interface import EmbeddingInfo, ModelInfo
from server.app import Application, create_app
from server.config import Config, StreamConfig
from server.service.registry import ModelRegistry, ServedModel
from tests.fake_engine import FakeEngine, Script, spell
from tests.server.dialects.openai_chat.test_answers import Marked
from tests.serving import wait_until

INFO = ModelInfo(context_limit=4096, vocab_size=260, num_parameters=7_600_000_000, weights_bytes=4_275_000_000)


class Numbered(Marked):
    """Its calls have the ids call_0, call_1, ..."""

    def __init__(self) -> None:
        assert Marked.chat_format.calls is not None
        self.numbers = itertools.count()
        calls = replace(Marked.chat_format.calls, new_id=lambda: f"call_{next(self.numbers)}")
        self.chat_format = replace(Marked.chat_format, calls=calls)


@dataclass(frozen=True, slots=True)
class Served:
    """`engine`: what is asked of it is in its `requests`."""

    app: Application
    engine: FakeEngine
    tokenizer: Numbered

    def write(self, script: Script) -> None:
        """Have the next answers be this, under ids that begin anew."""
        self.engine.script, self.tokenizer.numbers = script, itertools.count()

    @property
    def prompt(self) -> str:
        """The text of the last prompt."""
        return bytes(token for token in self.engine.requests[-1].prompt_ids if token < 256).decode()

    @asynccontextmanager
    async def http(self) -> AsyncIterator[httpx.AsyncClient]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://localhost") as client:
            yield client

    def sdk(self) -> ollama.AsyncClient:
        return ollama.AsyncClient(host="http://localhost", transport=httpx.ASGITransport(self.app))


@contextmanager
def serving(*, keep_alive_s: float = 60.0, is_embedding: bool = False) -> Iterator[Served]:
    """One model, `mock`, that thinks and calls as `Marked` says."""
    embedding = EmbeddingInfo(dim=4, pooling="last", is_normalized=True) if is_embedding else None
    engine, tokenizer = FakeEngine(info=replace(INFO, embedding=embedding)), Numbered()
    model = ServedModel("mock", engine, lambda: tokenizer)
    model.start()
    wait_until(lambda: model.tokenizer is not None)
    app = create_app(Config(stream=StreamConfig(keep_alive_s=keep_alive_s)), ModelRegistry([model]))
    try:
        yield Served(app, engine, tokenizer)
    finally:
        model.close()


def said(text: str, **options: Any) -> Script:
    """Bytes and an end token, which says nothing."""
    return [spell(text + "\0", reason="stop", **options)]


async def hang_until(condition: Any) -> None:
    async with asyncio.timeout(120):
        while not condition():
            await asyncio.sleep(0.005)
