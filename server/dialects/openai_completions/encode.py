"""Output events as OpenAI's text completions: chunks of a stream, and the one object that is their fold."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from typing import Any

from server.dialects.openai_shared import ChunkEncoder, Head, dump, finite, fold_choices, quote
from server.text.events import Finished, OutputEvent, TextDelta, TokenText

OBJECT = "text_completion"


def build_encoder(head: Head, include_usage: bool) -> ChunkEncoder:
    return ChunkEncoder(head, OBJECT, include_usage, _ChoiceEncoder().encode)


def fold(head: Head, events: Iterable[OutputEvent]) -> dict[str, Any]:
    """The JSON answer."""
    choices, usage = fold_choices(events)
    return {
        "id": head.id,
        "object": OBJECT,
        "created": head.created,
        "model": head.model,
        "choices": [
            {
                "index": index,
                "text": choice.text,
                "logprobs": LogprobsEncoder().encode(choice.tokens) if choice.tokens else None,
                "finish_reason": choice.reason,
            }
            for index, choice in choices
        ],
        "usage": usage,
    }


class _ChoiceEncoder:
    """The choices of a stream's chunks, and how far the logarithms of each choice have come."""

    def __init__(self) -> None:
        self._logprobs: dict[int, LogprobsEncoder] = {}

    def encode(self, event: TextDelta | Finished) -> Sequence[str]:
        if isinstance(event, Finished):
            return (f'"index":{event.index},"text":"","logprobs":null,"finish_reason":"{event.reason}"',)
        logprobs = self._encode_logprobs(event) if event.tokens else "null"
        return (f'"index":{event.index},"text":{quote(event.text)},"logprobs":{logprobs},"finish_reason":null',)

    def _encode_logprobs(self, delta: TextDelta) -> str:
        encoder = self._logprobs.setdefault(delta.index, LogprobsEncoder())
        return dump(encoder.encode(delta.tokens))


class LogprobsEncoder:
    """The log-probabilities of one choice in the form of four parallel lists.

    `text_offset` counts characters; the tokens of one character share its offset.
    """

    def __init__(self) -> None:
        self._offset = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def encode(self, tokens: Sequence[TokenText]) -> dict[str, Any]:
        return {
            "tokens": [_name(token) for token in tokens],
            "token_logprobs": [finite(token.logprob) for token in tokens],
            "top_logprobs": [_top(token) for token in tokens] if any(token.top for token in tokens) else None,
            "text_offset": [self._advance(token) for token in tokens],
        }

    def _advance(self, token: TokenText) -> int:
        offset = self._offset
        self._offset += len(self._decoder.decode(token.raw))
        return offset


def _top(token: TokenText) -> dict[str, float]:
    """The most likely tokens, and the chosen one where it is not among them."""
    return {_name(one): finite(one.logprob) for one in (*token.top, token)}


def _name(token: TokenText) -> str:
    """The token's text; for part of a character its bytes, so that two parts do not get one name."""
    try:
        return token.raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token.raw)
