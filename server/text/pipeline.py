"""Pipeline of one choice from the engine's tokens to output events: detokenize, parse, match stop strings.

Owns the state of that choice and pairs tokens with the text they produced. Independent of dialects and engines.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from mlx_backend.api.interface import TokenEvent, TokenLogprobs
from server.text.events import EndReason, Finished, OutputEvent, ReasoningDelta, TextDelta, TokenText, ToolCallDelta
from server.text.parsers.chat import RawText
from server.text.parsers.parts import OutputParser, Part
from server.text.stop import StopStrings
from server.text.tokenizer import Tokenizer


class ChoicePipeline:
    """Turns the token events of one choice into its deltas and its end. Without a `parser`, everything is text.

    After a stop string, or after the single call the request allows, it is `done`: the caller aborts the sequence, and
    further tokens from the engine are ignored.
    """

    def __init__(
        self,
        index: int,
        tokenizer: Tokenizer,
        stop: tuple[str, ...],
        wants_logprobs: bool,
        parser: OutputParser | None = None,
        min_tokens: int = 0,
    ) -> None:
        """`min_tokens`: number of output tokens during which no stop string ends the choice."""
        self._index = index
        self._min_tokens = min_tokens
        self._tokenizer = tokenizer
        self._wants_logprobs = wants_logprobs
        self._parser = parser or RawText()
        self._detokenizer = tokenizer.detokenizer(self._parser.markup)
        self._stop = StopStrings(stop)
        self._tokens = _TokenLedger()
        self._num_parsed = 0  # characters
        self._num_output_tokens = 0
        self._num_reasoning_tokens = None if parser is None else 0
        self._num_calls = 0
        self._end_token: TokenText | None = None
        self._matched: str | None = None
        self._done = False

    @property
    def done(self) -> bool:
        return self._done

    @property
    def num_output_tokens(self) -> int:
        """Tokens so far, up to the one that completed the stop string, including the end token."""
        return self._num_output_tokens

    def feed(self, event: TokenEvent) -> list[OutputEvent]:
        """Return the events of one more token; empty once `done`."""
        if self._done:
            return []
        self._num_output_tokens += 1
        reason: EndReason | None = event.finish_reason
        parts = self._parser.feed(self._text_of(event))
        if reason is not None and not self._parser.done:
            parts += self._parser.flush(is_cut=reason != "stop")
        is_end = reason is not None or self._parser.done
        parts, self._matched = self._up_to_stop(parts, is_end=is_end)
        is_stopped = self._matched is not None
        if reason == "stop" and not is_stopped:
            self._end_token = self._note(event)
        if not is_end and not is_stopped:
            return self._events(parts, is_end=False)
        return self._end(self._events(_joined(parts), is_end=True), "stop" if is_stopped or not reason else reason)

    def _up_to_stop(self, parts: list[Part], *, is_end: bool) -> tuple[list[Part], str | None]:
        """Return (the parts up to the first stop string in the content, that string)."""
        kept: list[Part] = []
        for part in parts:
            if part.kind != "content":
                kept += _content(self._stop.flush() if part.size else "")
                kept.append(part)
                continue
            may_end = self._num_output_tokens > self._min_tokens
            text, matched = self._stop.feed(part.text, may_end=may_end)
            kept += _content(text)
            if matched is not None:
                return kept or _nothing(), matched
        kept += _content(self._stop.flush() if is_end else "")
        return kept or (_nothing() if is_end else []), None

    def _text_of(self, event: TokenEvent) -> str:
        text = ""
        if event.finish_reason != "stop":  # an end token has no text
            text = self._detokenizer.push(event.token_id)
            self._tokens.add(self._note(event))
        if event.finish_reason is not None:
            text += self._detokenizer.flush()
        self._tokens.grow(len(text))
        return text

    def _note(self, event: TokenEvent) -> TokenText | None:
        if event.logprobs is None or not self._wants_logprobs:
            return None
        return describe_token(self._tokenizer, event.token_id, event.logprobs)

    def _events(self, parts: list[Part], *, is_end: bool) -> list[OutputEvent]:
        """Return each part with the tokens that end in it; the last one also gets the remaining tokens."""
        events: list[OutputEvent] = []
        for number, part in enumerate(parts, 1):
            self._num_parsed += part.size
            tokens = self._tokens.release(self._num_parsed)
            if is_end and number == len(parts):
                tokens += self._tokens.release_last(self._num_parsed)
            events += self._encode(part, tokens)
        return events

    def _encode(self, part: Part, tokens: tuple[TokenText | None, ...]) -> list[OutputEvent]:
        noted = tuple(token for token in tokens if token is not None)
        if part.kind == "call":
            first = self._num_calls
            self._num_calls += len(part.calls)
            calls = enumerate(part.calls, first)
            return [ToolCallDelta(self._index, place, call.id, call.name, call.arguments) for place, call in calls]
        if part.kind == "reasoning":
            assert self._num_reasoning_tokens is not None, "only a chat is parsed"
            self._num_reasoning_tokens += len(tokens)
            return [ReasoningDelta(self._index, part.text, noted)] if part.text or noted else []
        return [TextDelta(self._index, part.text, noted)] if part.text or noted else []

    def _end(self, events: list[OutputEvent], reason: EndReason) -> list[OutputEvent]:
        self._done = True
        if reason == "stop" and self._num_calls:
            reason = "tool_calls"
        counts = (self._num_output_tokens, self._num_reasoning_tokens)
        return [*events, Finished(self._index, reason, *counts, self._end_token, self._matched)]


def describe_token(tokenizer: Tokenizer, token_id: int, found: TokenLogprobs) -> TokenText:
    """Return a token and the most likely alternatives as text and bytes."""
    top = tuple(describe_token(tokenizer, other, TokenLogprobs(logprob)) for other, logprob in found.top)
    return TokenText(token_id, tokenizer.token_text(token_id), tokenizer.token_bytes(token_id), found.logprob, top)


def _content(text: str) -> list[Part]:
    return [Part("content", text, len(text))] if text else []


def _nothing() -> list[Part]:
    return [Part("content", "", 0)]


def _joined(parts: list[Part]) -> list[Part]:
    """Merge neighbouring parts of one kind."""
    joined = parts[:1]
    for part in parts[1:]:
        last = joined[-1]
        if last.kind == part.kind:
            joined[-1] = Part(part.kind, last.text + part.text, last.size + part.size, last.calls + part.calls)
        else:
            joined.append(part)
    return joined


@dataclass(slots=True)
class _TokenLedger:
    """Tokens and their characters, for those not yet emitted; None stands for a token without log-probabilities.

    A token without text belongs to the next one with text: together they form a character, or nothing.
    """

    _waiting: list[TokenText | None] = field(default_factory=list)
    _spans: deque[tuple[int, int, list[TokenText | None]]] = field(default_factory=deque)
    _length: int = 0

    def add(self, token: TokenText | None) -> None:
        self._waiting.append(token)

    def grow(self, num_characters: int) -> None:
        """Attribute these characters to the tokens added since the last call."""
        if num_characters and self._waiting:
            self._spans.append((self._length, self._length + num_characters, self._waiting))
            self._waiting = []
        self._length += num_characters

    def release(self, num_emitted: int) -> tuple[TokenText | None, ...]:
        """Return the tokens with completely emitted text."""
        released: list[TokenText | None] = []
        while self._spans and self._spans[0][1] <= num_emitted:
            released += self._spans.popleft()[2]
        return tuple(released)

    def release_last(self, num_emitted: int) -> tuple[TokenText | None, ...]:
        """Return the tokens with partly emitted text, and those without any."""
        begun = [token for start, _, tokens in self._spans if start < num_emitted for token in tokens]
        return (*begun, *self._waiting)
