"""One streamed completion, turned into its record. Speaks `/v1/completions`; computes no figures."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import httpx2

from server.client.record import Record
from server.client.wire import END, TIMEOUT_S, read_event


class Client:
    """Sends greedy completions to one model of one server."""

    def __init__(self, http: httpx2.AsyncClient, model: str, extra: Mapping[str, Any] | None = None) -> None:
        """`extra`: fields of every request, beyond the usual ones."""
        self._http = http
        self._model = model
        self.extra = dict(extra or {})

    async def complete(
        self,
        prompt: str,
        max_tokens: int,
        *,
        timeout_s: float = TIMEOUT_S,
        on_text: Callable[[int], None] | None = None,
    ) -> Record:
        """Send a request and read its answer. Failures are in the record. `on_text` receives the number of texts."""
        body = {
            "model": self._model,
            "prompt": prompt,
            "max_tokens": max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            **self.extra,
        }
        answer = Answer(on_text)
        try:
            async with self._http.stream("POST", "/v1/completions", json=body, timeout=timeout_s) as response:
                if response.status_code != 200:
                    answer.error = f"HTTP {response.status_code}"
                    return answer.record()
                async for line in response.aiter_lines():
                    answer.take(line)
        except (httpx2.HTTPError, ValueError) as error:
            answer.error = type(error).__name__
        return answer.record()


class Answer:
    """The part of one stream received so far."""

    def __init__(self, on_text: Callable[[int], None] | None = None) -> None:
        self.error: str | None = None
        self._on_text = on_text
        self._sent_s = time.perf_counter()
        self._stamps: list[float] = []
        self._usage: dict[str, Any] = {}
        self._is_done = False

    def take(self, line: str) -> None:
        """Process one line of the stream. Raises ValueError if its data is not JSON."""
        event = read_event(line)
        if event is END:
            self._is_done = True
        elif event is not None:
            self._take_event(event)

    def _take_event(self, event: dict[str, Any]) -> None:
        if "error" in event:
            self.error = "error event"
        self._usage = event.get("usage") or self._usage
        if any(choice.get("text") for choice in event.get("choices", ())):
            self._stamps.append(time.perf_counter())
            if self._on_text:
                self._on_text(len(self._stamps))

    def record(self) -> Record:
        """Return the current record; a stream without `[DONE]` was cut off."""
        details = self._usage.get("prompt_tokens_details") or {}
        return Record(
            sent_s=self._sent_s,
            stamps=tuple(self._stamps),
            num_output_tokens=self._usage.get("completion_tokens") or len(self._stamps),
            num_cached_tokens=details.get("cached_tokens"),
            num_prompt_tokens=self._usage.get("prompt_tokens"),
            error=self.error or (None if self._is_done else "cut off"),
        )
