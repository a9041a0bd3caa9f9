"""Computation of the beginning of a chat's next prompt while the model is idle.

Many templates omit the reasoning since the last question once there is another one, so that everything after it,
calls and results, becomes a different prompt. That part is known as soon as an answer ends, whatever the next
question: it is computed then, and the prefix cache holds both forms. Requests take precedence.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mlx_backend.api.errors import EngineError
from mlx_backend.api.interface import GenerationRequest, SamplingParams, TokenEvent
from server.service.encoding import run_in_text_thread
from server.service.job import ChatPrompt, GenerationJob
from server.text.borders import BorderFinder, num_common
from server.text.events import Finished, OutputEvent, ReasoningDelta, TextDelta

if TYPE_CHECKING:
    from server.service.registry import ServedModel

logger = logging.getLogger("pippin.prefix_cache")

LEAST_TOKENS = 256
"""Minimum number of tokens worth computing ahead."""
_IDLE_WAIT_S, _MOST_WAITS = 0.05, 40


class Ahead:
    """Computation ahead of time: at most one prompt, until a request arrives. Used on the event loop only."""

    def __init__(self) -> None:
        self._task: asyncio.Task[None] | None = None

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Start this work in place of earlier work."""
        self.stop()
        self._task = asyncio.create_task(work)

    def stop(self) -> None:
        """Stop the work; tokens computed so far are kept."""
        if self._task is not None:
            self._task.cancel()

    @property
    def is_idle(self) -> bool:
        return self._task is None or self._task.done()


class NextTurn:
    """Content of one chat's answer, kept to compute the beginning of its next prompt."""

    def __init__(self, model: ServedModel, prompt: ChatPrompt, request: GenerationRequest) -> None:
        self._model, self._prompt, self._request = model, prompt, request
        self._output_ids: list[int] = []
        self._texts: list[str] = []
        self._thoughts: list[str] = []
        self._is_final = False

    def take(self, token: TokenEvent, events: Sequence[OutputEvent]) -> None:
        """Store a token and its output events."""
        self._output_ids.append(token.token_id)
        for event in events:
            if isinstance(event, TextDelta):
                self._texts.append(event.text)
            elif isinstance(event, ReasoningDelta):
                self._thoughts.append(event.text)
            elif isinstance(event, Finished):
                self._is_final = event.reason == "stop"  # calls are followed by their results in the same turn

    def begin(self) -> None:
        """Compute the beginning of the next prompt, if more than the answer changes in it."""
        if self._is_final and self._has_steps():
            self._model.ahead.start(self._compute())

    async def _compute(self) -> None:
        try:
            if not await self._is_idle():
                return
            ids = await run_in_text_thread(self._find, self._model.borders)
            if len(ids) - num_common(ids, (*self._request.prompt_ids, *self._output_ids)) < LEAST_TOKENS:
                return
            request = replace(
                self._request,
                request_id=f"{self._request.request_id}-next",
                prompt_ids=tuple(ids),
                max_tokens=0,
                min_tokens=0,
                sampling=SamplingParams(),
                num_prompt_logprobs=None,
                grammar=None,
                cache_breakpoints=(),
                mock=None,
                priority="batch",
            )
            async with aclosing(self._model.engine.submit([request])) as tokens:
                async for _ in tokens:
                    pass
            logger.debug("computed the beginning of the next prompt: %d tokens", len(ids))
        except EngineError as error:
            logger.debug("the beginning of the next prompt was not computed: %s", error)

    def _has_steps(self) -> bool:
        """Return whether there are answers since the last question: calls whose reasoning may be omitted."""
        roles = [message.get("role") for message in self._prompt.messages]
        return "user" in roles and "assistant" in roles[-roles[::-1].index("user") :]

    def _find(self, borders: BorderFinder) -> list[int]:
        """Return the beginning of the next prompt; empty if the template omits nothing."""
        prompt = self._prompt
        if not borders.forgets:
            return []
        return borders.find_next(prompt.messages, self._answer(), prompt.template_kwargs, prompt.tools)

    def _answer(self) -> dict[str, Any]:
        """Return the answer as the client will send it back: with reasoning unless earlier ones lack it."""
        answer: dict[str, Any] = {"role": "assistant", "content": "".join(self._texts)}
        earlier = [message for message in self._prompt.messages if message.get("role") == "assistant"]
        gives = not earlier or any(message.get("reasoning_content") for message in earlier)
        return {**answer, "reasoning_content": "".join(self._thoughts)} if gives and self._thoughts else answer

    async def _is_idle(self) -> bool:
        """Return whether the model is idle; the answer itself leaves the engine shortly after its end."""
        for _ in range(_MOST_WAITS):
            stats = self._model.engine.stats()
            if stats.num_waiting + stats.num_prefilling + stats.num_running == 0:
                return True
            await asyncio.sleep(_IDLE_WAIT_S)
        return False


def next_turn_of(
    model: ServedModel, job: GenerationJob, requests: Sequence[GenerationRequest], *, is_cut: bool
) -> NextTurn | None:
    """Return the next turn of a job; None if no next prompt is known. `is_cut`: turns were dropped."""
    info = model.info
    if not model.computes_ahead or is_cut or not job.uses_prefix_cache or len(requests) != 1 or job.n != 1:
        return None
    (prompt,) = job.prompts
    is_kept = info is not None and info.prefix_cache.reason is None
    if not is_kept or not isinstance(prompt, ChatPrompt) or prompt.ending != "answer":
        return None
    return NextTurn(model, prompt, requests[0])
