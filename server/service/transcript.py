"""What an answer may show of a job's tokens beside its text: prompts, their log-probabilities, ids, likelihoods.

Kept for the jobs that ask for it, and filled as their output is read. Knows no dialect.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from mlx_backend.interface import PromptEvent, StreamEvent, TokenLogprobs
from server.service.job import Prompt, TextPrompt
from server.text.events import TokenText
from server.text.offsets import token_offsets
from server.text.pipeline import describe_token
from server.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class PromptText:
    """A prompt as it is given back. `tokens` and `offsets` are empty where no log-probabilities were asked for."""

    text: str
    tokens: tuple[TokenText, ...] = ()
    """The first has no log-probability: it is NaN."""
    offsets: tuple[int, ...] = ()
    """The character of `text` at which each token begins."""


@dataclass(slots=True)
class _Choice:
    ids: list[int] = field(default_factory=list)
    num_shown: int = 0
    sum_logprobs: float = 0.0


class Transcript:
    """The tokens of one job. Choice i of prompt p has the index p * n + i."""

    def __init__(self, tokenizer: Tokenizer, prompts: Sequence[Prompt], ids: Sequence[tuple[int, ...]], n: int) -> None:
        self._tokenizer = tokenizer
        self._prompts = list(zip(prompts, ids, strict=True))
        self._n = n
        self._choices = [_Choice() for _ in range(n * len(prompts))]
        self._logprobs: dict[int, tuple[TokenLogprobs, ...]] = {}
        self._known: dict[int, PromptText] = {}

    def take(self, event: StreamEvent) -> None:
        """One more event of the engine's, in order."""
        if isinstance(event, PromptEvent):
            self._logprobs[event.index // self._n] = event.logprobs
            return
        choice = self._choices[event.index]
        choice.ids.append(event.token_id)
        if event.logprobs is not None:
            choice.sum_logprobs += event.logprobs.logprob

    def prompt_ids(self, index: int) -> tuple[int, ...]:
        """Of the prompt that choice `index` continues."""
        return self._prompts[index // self._n][1]

    def prompt(self, index: int, *, with_tokens: bool) -> PromptText:
        """The prompt that choice `index` continues; `with_tokens` needs its log-probabilities to have come."""
        place = index // self._n
        if place not in self._known:
            prompt, ids = self._prompts[place]
            text = prompt.text if isinstance(prompt, TextPrompt) else self._tokenizer.decode(ids)
            self._known[place] = (
                self._with_tokens(text, ids, self._logprobs[place]) if with_tokens else PromptText(text)
            )
        return self._known[place]

    def token_ids(self, index: int) -> list[int]:
        """Those of a choice that were not asked for before, an end token included."""
        choice = self._choices[index]
        new = choice.ids[choice.num_shown :]
        choice.num_shown = len(choice.ids)
        return new

    def mean_logprob(self, index: int) -> float:
        """Log-probability per token of a choice, where these were asked for; 0 of one without a token."""
        choice = self._choices[index]
        return choice.sum_logprobs / max(len(choice.ids), 1)

    def _with_tokens(self, text: str, ids: tuple[int, ...], logprobs: tuple[TokenLogprobs, ...]) -> PromptText:
        told = (TokenLogprobs(math.nan), *logprobs)
        tokens = tuple(
            describe_token(self._tokenizer, token_id, each) for token_id, each in zip(ids, told, strict=True)
        )
        return PromptText(text, tokens, tuple(token_offsets(text, (token.raw for token in tokens))))
