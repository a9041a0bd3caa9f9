"""A conversation with one model of one server: streamed answers and their statistics.

Speaks `/v1/chat/completions`; prints nothing. Single-threaded and blocking.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import httpx2

from server.client.wire import END, error_text, read_event, settings


class ChatError(Exception):
    """The server is unreachable, refused, or broke off; a one-line message."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of an answer."""

    kind: Literal["reasoning", "content"]
    text: str


@dataclass(slots=True)
class AnswerStats:
    """Statistics of one answer, as far as it came. Times are from `time.perf_counter`."""

    sent_s: float = field(default_factory=time.perf_counter)
    first_s: float | None = None
    last_s: float | None = None
    num_pieces: int = 0
    num_prompt_tokens: int | None = None
    """None until the server reports it, at the end."""
    num_cached_tokens: int = 0
    num_output_tokens: int | None = None

    @property
    def ttft_s(self) -> float | None:
        return None if self.first_s is None else self.first_s - self.sent_s

    @property
    def tok_s(self) -> float | None:
        """Tokens per second after the first; pieces per second for an answer that was stopped."""
        if self.first_s is None or self.last_s is None or self.last_s <= self.first_s:
            return None
        num = self.num_pieces if self.num_output_tokens is None else self.num_output_tokens
        return (num - 1) / (self.last_s - self.first_s)

    def take(self, usage: dict[str, Any]) -> None:
        self.num_prompt_tokens = usage.get("prompt_tokens")
        self.num_output_tokens = usage.get("completion_tokens")
        self.num_cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0

    def tick(self) -> None:
        self.last_s = time.perf_counter()
        self.first_s = self.last_s if self.first_s is None else self.first_s
        self.num_pieces += 1


class Conversation:
    """The turns so far, and the connection. As a context manager, closes the connection at its end."""

    def __init__(
        self, url: str, *, model: str | None = None, key: str | None = None, system: str | None = None
    ) -> None:
        """Open a connection. Raises ValueError for an invalid URL."""
        self._http = httpx2.Client(**settings(url, key))
        self.url = str(self._http.base_url).rstrip("/")
        self.model = model
        self.system = system
        self.turns: list[dict[str, str]] = []
        self.answers: list[AnswerStats] = []
        """Includes answers of cleared turns."""

    def __enter__(self) -> Conversation:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def choose_model(self) -> str:
        """Return the model to use: the one named, or the first that is served. Raises ChatError."""
        served = [str(model["id"]) for model in self._get_models()]
        if self.model is None:
            if not served:
                raise ChatError(f"{self.url} serves no model")
            self.model = served[0]
        elif served and self.model not in served:
            raise ChatError(f"{self.url} does not serve {self.model}; it serves: {', '.join(served)}")
        return self.model

    def _get_models(self) -> list[dict[str, Any]]:
        try:
            response = self._http.get("/v1/models")
            if response.status_code != 200:
                raise ChatError(error_text(response.status_code, response.content))
            found = response.json()["data"]
            return [model for model in found if "id" in model]
        except httpx2.HTTPError as error:
            raise _unreachable(self.url, error) from error
        except (ValueError, LookupError, TypeError) as error:
            raise ChatError(f"{self.url} does not answer as OpenAI's API does") from error

    def clear(self) -> None:
        """Remove the turns; the system prompt stays."""
        self.turns.clear()

    def ask(self, question: str) -> Iterator[Piece]:
        """Yield the answer in pieces. What arrived becomes a turn, even if the iterator is closed early.

        Raises ChatError; then the question is not added as a turn.
        """
        stats, content = AnswerStats(), []
        is_kept = True
        try:
            for event in self._events(question):
                if event.get("usage"):
                    stats.take(event["usage"])
                for piece in _pieces(event):
                    stats.tick()
                    if piece.kind == "content":
                        content.append(piece.text)
                    yield piece
        except ChatError:
            is_kept = False
            raise
        finally:
            self.answers.append(stats)
            if is_kept and content:
                self.turns += [
                    {"role": "user", "content": question},
                    {"role": "assistant", "content": "".join(content)},
                ]

    def _events(self, question: str) -> Iterator[dict[str, Any]]:
        system = [{"role": "system", "content": self.system}] if self.system else []
        body = {
            "model": self.model,
            "messages": [*system, *self.turns, {"role": "user", "content": question}],
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        try:
            with self._http.stream("POST", "/v1/chat/completions", json=body) as response:
                if response.status_code != 200:
                    raise ChatError(error_text(response.status_code, response.read()))
                for line in response.iter_lines():
                    event = read_event(line)
                    if event is END:
                        return
                    if event is not None:
                        yield _checked(event)
        except httpx2.HTTPError as error:
            raise _unreachable(self.url, error) from error
        except ValueError as error:
            raise ChatError(f"{self.url} has sent what is no event: {error}") from error
        raise ChatError(f"{self.url} has broken off")


def _checked(event: dict[str, Any]) -> dict[str, Any]:
    error = event.get("error")
    if error:
        raise ChatError(str(error.get("message", error) if isinstance(error, dict) else error))
    return event


def _pieces(event: dict[str, Any]) -> Iterator[Piece]:
    for choice in event.get("choices") or ():
        delta = choice.get("delta") or {}
        reasoning = delta.get("reasoning_content") or delta.get("reasoning")
        if reasoning:
            yield Piece("reasoning", str(reasoning))
        if delta.get("content"):
            yield Piece("content", str(delta["content"]))


def _unreachable(url: str, error: Exception) -> ChatError:
    what = str(error).strip() or type(error).__name__
    return ChatError(f"{url} cannot be reached: {what}")
