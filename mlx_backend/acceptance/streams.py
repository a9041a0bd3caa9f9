"""An engine in this process, used as a server uses it: streams with the time of each token. No MLX."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from mlx_backend.api.errors import EngineError
from mlx_backend.api.interface import Engine, EngineConfig, GenerationRequest, SamplingParams, TokenEvent
from mlx_backend.factory import create_engine

_LOAD_PAUSE_S = 0.05


@dataclass(slots=True)
class Stream:
    """Tokens of one stream, each with its time since the request."""

    token_ids: list[int] = field(default_factory=list)
    stamps_s: list[float] = field(default_factory=list)

    @property
    def ttft_s(self) -> float:
        return self.stamps_s[0]

    @property
    def tokens_per_s(self) -> float:
        """Rate after the first token."""
        spent_s = self.stamps_s[-1] - self.stamps_s[0]
        return (len(self.stamps_s) - 1) / spent_s if spent_s else 0.0


@asynccontextmanager
async def running(config: EngineConfig) -> AsyncIterator[Engine]:
    """Yield an engine that has loaded its model. Raises EngineError, or the cause of a failed load."""
    engine = create_engine(config)
    engine.start()
    try:
        while engine.model_info is None:
            if engine.failure is not None:
                raise engine.failure
            await asyncio.sleep(_LOAD_PAUSE_S)
        yield engine
    finally:
        engine.close()


async def generate(
    engine: Engine, prompts: Sequence[Sequence[int]], num_tokens: int, *, uses_prefix_cache: bool = False
) -> list[Stream]:
    """Decode `num_tokens` of each prompt, greedy, all at once. Raises EngineError."""
    return await asyncio.gather(*(_generate_one(engine, prompt, num_tokens, uses_prefix_cache) for prompt in prompts))


async def _generate_one(engine: Engine, prompt: Sequence[int], num_tokens: int, uses_prefix_cache: bool) -> Stream:
    request = GenerationRequest(
        request_id="acceptance",
        prompt_ids=tuple(prompt),
        max_tokens=num_tokens,
        sampling=SamplingParams(temperature=0),
        uses_prefix_cache=uses_prefix_cache,
    )
    found, began_at = Stream(), time.perf_counter()
    async for events in engine.submit([request]):
        now_s = time.perf_counter() - began_at
        for event in events:
            if isinstance(event, TokenEvent):
                found.token_ids.append(event.token_id)
                found.stamps_s.append(now_s)
    if not found.token_ids:
        raise EngineError("a stream ended without a token")
    return found
