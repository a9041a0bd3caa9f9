"""Encode output events as OpenAI text completions: chunks of a stream, or the one object that folds them."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from server.dialects.answers import ChunkEncoder
from server.dialects.fold import ChoiceEvent, Fold, joined, listed
from server.dialects.openai_written import Head, dump, finite, quote
from server.service.transcript import Transcript
from server.text.events import Finished, OutputEvent, TextDelta, TokenText, Usage

OBJECT = "text_completion"


@dataclass(frozen=True, slots=True)
class Shown:
    """Parts of an answer beside the text. Of `best_of` continuations of a prompt it shows the `n` likeliest."""

    echo: bool = False
    logprobs: bool = False
    token_ids: bool = False
    n: int = 1
    best_of: int = 1


def build_encoder(shown: Shown, head: Head, include_usage: bool) -> ChunkEncoder:
    choices = _ChunkChoices(shown, head.transcript)
    return ChunkEncoder(head, OBJECT, include_usage, choices.encode, choices.prepare if shown.echo else None)


def build_fold(shown: Shown, head: Head) -> Fold:
    """Return the fold that builds the JSON answer."""
    select = partial(_select, shown, _kept(head)) if shown.best_of > shown.n else None
    return Fold(head, OBJECT, lambda index: _FoldedChoice(shown, head.transcript, index), select)


def _select(shown: Shown, transcript: Transcript, indices: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield (number in the answer, index) of the continuations with the best mean log-probability, prompt by prompt."""
    for prompt, first in enumerate(range(0, len(indices), shown.best_of)):
        group = indices[first : first + shown.best_of]
        best = sorted(group, key=lambda index: -transcript.mean_logprob(index))[: shown.n]
        yield from ((prompt * shown.n + place, index) for place, index in enumerate(best))


@dataclass(slots=True)
class _FoldedChoice:
    """One choice of the JSON answer."""

    shown: Shown
    transcript: Transcript | None
    index: int
    text: list[str] = field(default_factory=list)
    reason: str | None = None
    tokens: list[Written] = field(default_factory=list)
    encoder: LogprobsEncoder | None = None

    def add(self, event: ChoiceEvent) -> int:
        size = 0
        if self.encoder is None:
            self.encoder = LogprobsEncoder(self._prompt_text())
            size = len(self._prompt_text())
        if isinstance(event, Finished):
            self.reason = event.reason
            tokens: Sequence[TokenText] = _ending(event.end_token)
        else:
            assert isinstance(event, TextDelta), "only a chat is parsed"
            self.text.append(event.text)
            size += len(event.text)
            tokens = event.tokens
        if self.shown.logprobs:
            written = [self.encoder.write(token) for token in tokens]
            self.tokens += written
            size += sum(each.size for each in written)
        return size

    def pieces(self, number: int) -> Iterator[str]:
        yield f'{{"index":{number},"text":{quote(self._prompt_text() + "".join(self.text))},"logprobs":'
        if self.shown.logprobs and self.shown.echo:
            yield from _lists(_prompt_logprobs(self._kept, self._kept.place(self.index)), self.tokens)
        elif self.shown.logprobs:
            yield from _lists(self.tokens)
        else:
            yield "null"
        yield f',"finish_reason":{dump(self.reason)}'
        if self.shown.token_ids:
            prompt_ids, ids = self._kept.prompt_ids(self.index), self._kept.token_ids(self.index)
            yield f',"prompt_token_ids":{dump(prompt_ids)},"token_ids":{dump(ids)}'
        yield "}"

    @property
    def _kept(self) -> Transcript:
        assert self.transcript is not None, "the job did not ask for a transcript"
        return self.transcript

    def _prompt_text(self) -> str:
        return self._kept.prompt_text(self._kept.place(self.index)) if self.shown.echo else ""


def _ending(end_token: TokenText | None) -> tuple[TokenText, ...]:
    """Return the end token as the last token: a request for one token after the prompt gets one, as with OpenAI."""
    return () if end_token is None else (end_token,)


def _kept(head: Head) -> Transcript:
    assert head.transcript is not None, "the job did not ask for a transcript"
    return head.transcript


class _ChunkChoices:
    """Choices of a stream's chunks, with the state of each choice's log-probabilities."""

    def __init__(self, shown: Shown, transcript: Transcript | None) -> None:
        self._shown = shown
        self._transcript = transcript
        self._logprobs: dict[int, LogprobsEncoder] = {}
        self._prompts: dict[int, str] = {}
        """Log-probabilities of prompts as JSON, by the prompt's place."""

    async def prepare(self, events: Iterable[OutputEvent]) -> None:
        """Write the log-probabilities of the prompts of choices that begin in `events`, in slices."""
        for event in events:
            if isinstance(event, Usage) or self._transcript is None or not self._shown.logprobs:
                continue
            place = self._transcript.place(event.index)
            if event.index not in self._logprobs and place not in self._prompts:
                pieces = _lists(_prompt_logprobs(self._transcript, place))
                self._prompts[place] = (await joined(pieces)).decode()

    def encode(self, event: TextDelta | Finished) -> Sequence[str]:
        encoder = self._logprobs.get(event.index)
        if encoder is not None:
            return (self._encode(event, encoder) + self._ids(event.index),)
        opening = self._open(event.index)
        encoder = self._logprobs[event.index]
        choice = self._encode(event, encoder)
        prompt_ids = self._prompt_ids(event.index)
        ids = self._ids(event.index)
        return (opening + prompt_ids, choice + ids) if opening else (choice + prompt_ids + ids,)

    def _encode(self, event: TextDelta | Finished, encoder: LogprobsEncoder) -> str:
        if isinstance(event, Finished):
            logprobs = self._encode_logprobs(_ending(event.end_token), encoder)
            return _chunk_choice(event.index, "", logprobs, f'"{event.reason}"')
        return _chunk_choice(event.index, event.text, self._encode_logprobs(event.tokens, encoder), "null")

    def _encode_logprobs(self, tokens: Sequence[TokenText], encoder: LogprobsEncoder) -> str:
        if not tokens or not self._shown.logprobs:
            return "null"
        return "".join(_lists(map(encoder.write, tokens)))

    def _open(self, index: int) -> str:
        """Return the echoed prompt as a chunk, or ""."""
        if not self._shown.echo or self._transcript is None:
            self._logprobs[index] = LogprobsEncoder()
            return ""
        place = self._transcript.place(index)
        text = self._transcript.prompt_text(place)
        self._logprobs[index] = LogprobsEncoder(text)
        return _chunk_choice(index, text, self._prompts.get(place, "null"), "null")

    def _prompt_ids(self, index: int) -> str:
        if not self._shown.token_ids or self._transcript is None:
            return ""
        return f',"prompt_token_ids":{dump(self._transcript.prompt_ids(index))}'

    def _ids(self, index: int) -> str:
        """Return the ids of the choice's tokens since its last chunk."""
        if not self._shown.token_ids or self._transcript is None:
            return ""
        return f',"token_ids":{dump(self._transcript.token_ids(index))}'


def _chunk_choice(index: int, text: str, logprobs: str, reason: str) -> str:
    return f'"index":{index},"text":{quote(text)},"logprobs":{logprobs},"finish_reason":{reason}'


class Written(NamedTuple):
    """One token in the four parallel lists of log-probabilities, as JSON. `top` is None if the request has none."""

    token: str
    logprob: str
    top: str | None
    offset: int

    @property
    def size(self) -> int:
        """Approximate number of characters."""
        return len(self.token) + len(self.logprob) + len(self.top or "") + 8


class LogprobsEncoder:
    """Writer of the log-probabilities of one choice, in order.

    `text_offset` counts characters from the first of the echoed prompt, if any; the tokens of one character share its
    offset.
    """

    def __init__(self, prompt_text: str = "") -> None:
        self._offset = len(prompt_text)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def write(self, token: TokenText) -> Written:
        offset = self._offset
        self._offset += len(self._decoder.decode(token.raw))
        return Written(quote(_name(token)), dump(finite(token.logprob)), _top(token) if token.top else None, offset)


def _prompt_logprobs(transcript: Transcript, place: int) -> Iterator[Written]:
    """Yield the tokens of a prompt. The first has no log-probability: it and its top tokens are null."""
    is_first = True
    for token, offset in transcript.prompt_tokens(place):
        logprob = "null" if is_first else dump(finite(token.logprob))
        yield Written(quote(_name(token)), logprob, _top(token) if token.top and not is_first else None, offset)
        is_first = False


def _lists(*parts: Iterable[Written]) -> Iterator[str]:
    """Yield the four lists of all tokens as JSON, or null without tokens; at most one piece per token."""
    tokens = []
    for part in parts:
        for token in part:
            tokens.append(token)
            yield ""  # lets the caller pause: tokens are computed as they are read, which can take long
    if not tokens:
        yield "null"
        return
    yield '{"tokens":'
    yield from listed(each.token for each in tokens)
    yield ',"token_logprobs":'
    yield from listed(each.logprob for each in tokens)
    yield ',"top_logprobs":'
    if any(each.top is not None for each in tokens):
        yield from listed(each.top or "null" for each in tokens)
    else:
        yield "null"
    yield ',"text_offset":'
    yield from listed(str(each.offset) for each in tokens)
    yield "}"


def _top(token: TokenText) -> str:
    """Return the most likely tokens, and the chosen one if it is not among them."""
    return dump({_name(one): finite(one.logprob) for one in (*token.top, token)})


def _name(token: TokenText) -> str:
    """Return the token's text. A token that is part of a character gets its bytes, which keeps names distinct."""
    try:
        return token.raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token.raw)
