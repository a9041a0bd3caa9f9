"""Token details of a job beside its text: prompts, their log-probabilities, ids, likelihoods.

Kept for jobs that request it, and filled as their output is read. Independent of dialects.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from mlx_backend.api.interface import PromptEvent, StreamEvent, TokenLogprobs
from server.service.job import Prompt, TextPrompt
from server.text.events import TokenText
from server.text.offsets import token_offsets
from server.text.pipeline import describe_token
from server.text.tokenizer import Tokenizer


@dataclass(slots=True)
class _Choice:
    ids: list[int] = field(default_factory=list)
    num_shown: int = 0
    sum_logprobs: float = 0.0


class Transcript:
    """Tokens of one job. Choice i of prompt p has the index p * n + i."""

    def __init__(self, tokenizer: Tokenizer, prompts: Sequence[Prompt], ids: Sequence[tuple[int, ...]], n: int) -> None:
        self._tokenizer = tokenizer
        self._prompts = list(zip(prompts, ids, strict=True))
        self._n = n
        self._choices = [_Choice() for _ in range(n * len(prompts))]
        self._logprobs: dict[int, tuple[TokenLogprobs, ...]] = {}
        self._texts: dict[int, str] = {}

    def take(self, event: StreamEvent) -> None:
        """Add the engine's next event."""
        if isinstance(event, PromptEvent):
            self._logprobs[event.index // self._n] = event.logprobs
            return
        choice = self._choices[event.index]
        choice.ids.append(event.token_id)
        if event.logprobs is not None:
            choice.sum_logprobs += event.logprobs.logprob

    def prompt_ids(self, index: int) -> tuple[int, ...]:
        """Return the token ids of the prompt that choice `index` continues."""
        return self._prompts[index // self._n][1]

    def place(self, index: int) -> int:
        """Return the position of the prompt that choice `index` continues."""
        return index // self._n

    def prompt_text(self, place: int) -> str:
        """Return a prompt as shown in the answer."""
        if place not in self._texts:
            prompt, ids = self._prompts[place]
            self._texts[place] = prompt.text if isinstance(prompt, TextPrompt) else self._tokenizer.decode(ids)
        return self._texts[place]

    def prompt_tokens(self, place: int) -> Iterator[tuple[TokenText, int]]:
        """Yield the tokens of a prompt with known log-probabilities, each with the offset of its first character.

        The first token's log-probability is NaN. Tokens are built lazily.
        """
        ids, logprobs = self._prompts[place][1], (TokenLogprobs(math.nan), *self._logprobs[place])
        offsets = token_offsets(self.prompt_text(place), map(self._tokenizer.token_bytes, ids))
        for token_id, found, offset in zip(ids, logprobs, offsets, strict=True):
            yield describe_token(self._tokenizer, token_id, found), offset

    def token_ids(self, index: int) -> list[int]:
        """Return the tokens of a choice since the last call, including an end token."""
        choice = self._choices[index]
        new = choice.ids[choice.num_shown :]
        choice.num_shown = len(choice.ids)
        return new

    def mean_logprob(self, index: int) -> float:
        """Return the mean log-probability per token of a choice, if requested; 0 without tokens."""
        choice = self._choices[index]
        return choice.sum_logprobs / max(len(choice.ids), 1)
