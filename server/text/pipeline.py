"""The way of one choice from the engine's tokens to what a dialect encodes: detokenize, then look for a stop.

Owns the state of that choice. Knows which token goes out with which text; knows no dialect and no engine.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from mlx_backend.interface import TokenEvent
from server.text.events import Finished, OutputEvent, TextDelta, TokenText
from server.text.stop import StopStrings
from server.text.tokenizer import Tokenizer


class ChoicePipeline:
    """Turns the token events of one choice into its deltas and its end.

    After a stop string it is `done`: the caller aborts the sequence, and what the engine still sends is ignored.
    """

    def __init__(self, index: int, tokenizer: Tokenizer, stop: tuple[str, ...], wants_logprobs: bool) -> None:
        self._index = index
        self._tokenizer = tokenizer
        self._wants_logprobs = wants_logprobs
        self._detokenizer = tokenizer.detokenizer()
        self._stop = StopStrings(stop)
        self._tokens = _TokenLedger()
        self._num_emitted = 0  # characters
        self._num_output_tokens = 0
        self._done = False

    @property
    def done(self) -> bool:
        return self._done

    @property
    def num_output_tokens(self) -> int:
        """Tokens so far, up to the one that completed the stop string, the end token included."""
        return self._num_output_tokens

    def feed(self, event: TokenEvent) -> list[OutputEvent]:
        """What one more token brings; nothing once `done`."""
        if self._done:
            return []
        self._num_output_tokens += 1
        emit, matched = self._stop.feed(self._text_of(event))
        reason = event.finish_reason
        if matched is not None:
            reason = "stop"
        elif reason is not None:
            emit += self._stop.flush()
        self._num_emitted += len(emit)
        if reason is None:
            return self._delta(emit, self._tokens.release(self._num_emitted) if emit else ())
        self._done = True
        last = self._delta(emit, self._tokens.release_last(self._num_emitted))
        return [*last, Finished(self._index, reason, self._num_output_tokens)]

    def _text_of(self, event: TokenEvent) -> str:
        text = ""
        if event.finish_reason != "stop":  # an end token says nothing
            text = self._detokenizer.push(event.token_id)
            if self._wants_logprobs:
                self._note(event)
        if event.finish_reason is not None:
            text += self._detokenizer.flush()
        self._tokens.grow(len(text))
        return text

    def _note(self, event: TokenEvent) -> None:
        if event.logprobs is None:
            return
        top = tuple(self._token_text(token_id, logprob) for token_id, logprob in event.logprobs.top)
        self._tokens.add(self._token_text(event.token_id, event.logprobs.logprob, top))

    def _token_text(self, token_id: int, logprob: float, top: tuple[TokenText, ...] = ()) -> TokenText:
        text, raw = self._tokenizer.token_text(token_id), self._tokenizer.token_bytes(token_id)
        return TokenText(token_id, text, raw, logprob, top)

    def _delta(self, text: str, tokens: tuple[TokenText, ...]) -> list[OutputEvent]:
        return [TextDelta(self._index, text, tokens)] if text or tokens else []


@dataclass(slots=True)
class _TokenLedger:
    """Which tokens made which characters, for those not given out yet.

    A token that brought no text belongs with the next that does: together they are a character, or nothing.
    """

    _waiting: list[TokenText] = field(default_factory=list)
    _spans: deque[tuple[int, int, list[TokenText]]] = field(default_factory=deque)
    _length: int = 0

    def add(self, token: TokenText) -> None:
        self._waiting.append(token)

    def grow(self, num_characters: int) -> None:
        """The tokens added since the last growth made these characters."""
        if num_characters and self._waiting:
            self._spans.append((self._length, self._length + num_characters, self._waiting))
            self._waiting = []
        self._length += num_characters

    def release(self, num_emitted: int) -> tuple[TokenText, ...]:
        """The tokens whose text is out to the end."""
        released: list[TokenText] = []
        while self._spans and self._spans[0][1] <= num_emitted:
            released += self._spans.popleft()[2]
        return tuple(released)

    def release_last(self, num_emitted: int) -> tuple[TokenText, ...]:
        """The tokens of which any text is out, and those that never made any."""
        begun = [token for start, _, tokens in self._spans if start < num_emitted for token in tokens]
        return (*begun, *self._waiting)
