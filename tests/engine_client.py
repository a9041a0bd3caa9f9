"""Helpers that drive an engine from a test: start it, submit, collect, wait for a state with a deadline."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from mlx_backend.api.interface import (
    Engine,
    EngineConfig,
    GenerationRequest,
    PromptEvent,
    SamplingParams,
    TokenEvent,
    TokenStream,
)
from mlx_backend.factory import create_engine

GREEDY = SamplingParams(temperature=0)
DEADLINE_S = 120.0


async def until(condition: Callable[[], bool]) -> None:
    """Wait for `condition`; fail if it is still false at a deadline far beyond the expected time."""
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, "the awaited state did not come"
        await asyncio.sleep(0.002)


@asynccontextmanager
async def running(config: EngineConfig) -> AsyncIterator[Engine]:
    """Yield a started engine after its model has loaded (or failed to load)."""
    engine = create_engine(config)
    engine.start()
    try:
        await until(lambda: engine.model_info is not None or engine.failure is not None)
        yield engine
    finally:
        engine.close()


def request(prompt: Sequence[int], max_tokens: int = 16, **changes: object) -> GenerationRequest:
    fields = {
        "request_id": "test",
        "prompt_ids": tuple(prompt),
        "max_tokens": max_tokens,
        "sampling": GREEDY,
        **changes,
    }
    return GenerationRequest(**fields)  # type: ignore[arg-type]


async def read(stream: TokenStream) -> dict[int, list[TokenEvent]]:
    """Return all tokens of a stream, by index."""
    return (await read_all(stream))[1]


async def read_all(stream: TokenStream) -> tuple[dict[int, PromptEvent], dict[int, list[TokenEvent]]]:
    """Return the prompt events and all tokens of a stream, by index; a prompt must come before its tokens."""
    prompts: dict[int, PromptEvent] = {}
    events: dict[int, list[TokenEvent]] = {}
    async for arrived in stream:
        for event in arrived:
            if isinstance(event, TokenEvent):
                events.setdefault(event.index, []).append(event)
            else:
                assert event.index not in events and event.index not in prompts
                prompts[event.index] = event
    return prompts, events


async def tokens(stream: TokenStream) -> list[list[int]]:
    """Return the token ids of each sequence, in the order of their indices."""
    events = await read(stream)
    return [[event.token_id for event in events[index]] for index in sorted(events)]


async def one(engine: Engine, prompt: Sequence[int], max_tokens: int = 16, **changes: object) -> list[int]:
    (output,) = await tokens(engine.submit([request(prompt, max_tokens, **changes)]))
    return output
