"""BatchSampler: one token per row, each row by its own parameters, in a fixed number of device operations.

Order: logit bias; tokens that may not be drawn (not allowed, ending before the least length, or ending a bad word);
repetition, presence and frequency penalties; DRY. These change greedy rows, too. Then, for rows with a temperature:
temperature, top-n-sigma, top-k, top-p, min-p, typical-p, XTC and the draw; each filter sees the probabilities that the
one before left. What no row of the batch asks for is not computed, and a filter leaves a row that did not ask as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from mlx_backend.core.row import Row
from mlx_backend.sampling.bad_words import BadWords, has_bad_words
from mlx_backend.sampling.dry import Dry, has_dry
from mlx_backend.sampling.logprobs import StepLogprobs, compute_logprobs
from mlx_backend.sampling.masks import TokenMasks, mask_logits
from mlx_backend.sampling.penalties import Penalties, has_penalty
from mlx_backend.sampling.random_draw import RandomDraw


@dataclass(frozen=True, slots=True)
class Drawn:
    """What one step chose: tokens int [rows], and log-probabilities where somebody asked."""

    tokens: mx.array
    logprobs: StepLogprobs | None
    state: tuple[mx.array, ...]
    """Further arrays to evaluate with the step."""

    @property
    def arrays(self) -> list[mx.array]:
        extra = [] if self.logprobs is None else self.logprobs.arrays
        return [self.tokens, *extra, *self.state]


class BatchSampler:
    """Parameters of the rows as device arrays; rebuilt when the rows change."""

    def __init__(self) -> None:
        self._rows: list[Row] = []
        self._penalties: Penalties | None = None
        self._dry: Dry | None = None
        self._bad_words: BadWords | None = None

    def set_rows(self, rows: Sequence[Row], vocab_size: int) -> None:
        """The rows of the next steps, in batch order."""
        self._rows = list(rows)
        params = [row.sampling for row in rows]
        bias = [(row, token, value) for row, p in enumerate(params) for token, value in p.logit_bias]
        self._bias = bias and (
            mx.array([row for row, _, _ in bias]),
            mx.array([token for _, token, _ in bias]),
            mx.array([value for _, _, value in bias], dtype=mx.float32),
        )
        penalized = any(has_penalty(p) for p in params)
        self._penalties = Penalties(self._rows, vocab_size, self._penalties) if penalized else None
        self._dry = Dry(self._rows, self._dry) if any(map(has_dry, params)) else None
        self._bad_words = BadWords(self._rows, self._bad_words) if any(map(has_bad_words, params)) else None
        self._masks = TokenMasks(self._rows, vocab_size)
        self._random = RandomDraw(self._rows, vocab_size) if any(p.temperature > 0 for p in params) else None

    def draw(self, logits: mx.array, grammar: Sequence[tuple[int, bytes]] = ()) -> Drawn:
        """Choose a token for each row. logits: [rows, vocab], any float; `grammar`: (place of a row, bits)."""
        raw = logits.astype(mx.float32)
        logits = raw
        if self._bias:
            rows, ids, values = self._bias
            logits = logits.at[rows, ids].add(values)
        logits = self._masks.apply(mask_logits(logits, grammar))
        if self._bad_words is not None:
            logits = self._bad_words.apply(logits)
        if self._penalties is not None:
            logits = self._penalties.apply(mx.array(logits))
        if self._dry is not None:
            logits = self._dry.apply(logits)
        tokens = mx.argmax(logits, axis=-1)
        if self._random is not None:
            tokens = self._random.draw(logits, greedy=tokens)
        state: tuple[mx.array, ...] = ()
        if self._penalties is not None:
            self._penalties.count(tokens)
            state += (self._penalties.state,)
        if self._dry is not None:
            self._dry.append(tokens)
            state += self._dry.state
        if self._bad_words is not None:
            self._bad_words.append(tokens)
            state += (self._bad_words.state,)
        return Drawn(tokens, compute_logprobs(raw, tokens, self._rows), state)
