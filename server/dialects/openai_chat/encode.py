"""Output events as OpenAI's chat completions: chunks of a stream, and the one object that is their fold."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from server.dialects.openai_shared import ChunkEncoder, Head, dump, finite, fold_choices, quote
from server.text.events import Finished, OutputEvent, TextDelta, TokenText


def build_encoder(head: Head, include_usage: bool) -> ChunkEncoder:
    return ChunkEncoder(head, "chat.completion.chunk", include_usage, _ChoiceEncoder().encode)


def fold(head: Head, events: Iterable[OutputEvent]) -> dict[str, Any]:
    """The JSON answer."""
    choices, usage = fold_choices(events)
    return {
        "id": head.id,
        "object": "chat.completion",
        "created": head.created,
        "model": head.model,
        "choices": [
            {
                "index": index,
                "message": {"role": "assistant", "content": choice.text, "refusal": None},
                "logprobs": encode_logprobs(choice.tokens) if choice.tokens else None,
                "finish_reason": choice.reason,
            }
            for index, choice in choices
        ],
        "usage": usage,
    }


class _ChoiceEncoder:
    """The choices of a stream's chunks; the first of each says whose turn it is."""

    def __init__(self) -> None:
        self._begun: set[int] = set()

    def encode(self, event: TextDelta | Finished) -> Sequence[str]:
        if event.index in self._begun:
            return (_encode(event),)
        self._begun.add(event.index)
        return (_choice(event.index, '{"role":"assistant","content":""}', "null", "null"), _encode(event))


def _encode(event: TextDelta | Finished) -> str:
    if isinstance(event, Finished):
        return _choice(event.index, "{}", "null", f'"{event.reason}"')
    logprobs = dump(encode_logprobs(event.tokens)) if event.tokens else "null"
    return _choice(event.index, f'{{"content":{quote(event.text)}}}', logprobs, "null")


def _choice(index: int, delta: str, logprobs: str, reason: str) -> str:
    return f'"index":{index},"delta":{delta},"logprobs":{logprobs},"finish_reason":{reason}'


def encode_logprobs(tokens: Sequence[TokenText]) -> dict[str, Any]:
    content = [{**_token(token), "top_logprobs": [_token(one) for one in token.top]} for token in tokens]
    return {"content": content, "refusal": None}


def _token(token: TokenText) -> dict[str, Any]:
    return {"token": token.text, "logprob": finite(token.logprob), "bytes": list(token.raw)}
