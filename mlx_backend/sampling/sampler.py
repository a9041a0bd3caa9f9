"""BatchSampler: one token per row, each row with separate parameters, in a fixed number of device operations.

Order: logit bias; tokens that may not be drawn (not allowed, ending before the least length, or ending a bad word);
repetition, presence and frequency penalties; DRY. These change greedy rows, too. Then, for rows with a temperature:
temperature, top-n-sigma, top-k, top-p, min-p, typical-p, XTC and the draw; each filter sees the probabilities that the
previous one left. Steps that no row of the batch uses are skipped, and a filter leaves rows that do not use it
unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from mlx_backend.core.row import Row
from mlx_backend.sampling.bad_words import BadWords, has_bad_words
from mlx_backend.sampling.continued import Continued, Sources
from mlx_backend.sampling.dry import Dry, DryState, has_dry
from mlx_backend.sampling.logprobs import StepLogprobs, compute_logprobs
from mlx_backend.sampling.masks import TokenMasks, mask_logits
from mlx_backend.sampling.penalties import Penalties, PenaltyState, has_penalty
from mlx_backend.sampling.random_draw import RandomDraw


@dataclass(frozen=True, slots=True)
class Drawn:
    """Result of one step: tokens int [rows], and log-probabilities if a row requests them."""

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
        """Set the rows of the next steps, in batch order."""
        self._set_rows(rows, vocab_size, self._penalties, self._dry, self._bad_words)

    def go_on_from(self, other: BatchSampler, sources: Sources, vocab_size: int) -> None:
        """Set rows, in batch order, each with the state that a row of `other` has after further tokens."""
        penalties, dry, bad_words = other._penalties, other._dry, other._bad_words
        self._set_rows(
            list(sources),
            vocab_size,
            None if penalties is None else Continued(penalties, sources),
            None if dry is None else Continued(dry, sources),
            None if bad_words is None else Continued(bad_words, sources),
        )

    @property
    def has_state(self) -> bool:
        """Whether the result depends on the tokens that were drawn before."""
        return self._penalties is not None or self._dry is not None or self._bad_words is not None

    def _set_rows(
        self,
        rows: Sequence[Row],
        vocab_size: int,
        penalties: Penalties | Continued[PenaltyState] | None,
        dry: Dry | Continued[DryState] | None,
        bad_words: BadWords | Continued[mx.array] | None,
    ) -> None:
        self._rows = list(rows)
        params = [row.sampling for row in rows]
        bias = [(row, token, value) for row, p in enumerate(params) for token, value in p.logit_bias]
        self._bias = bias and (
            mx.array([row for row, _, _ in bias]),
            mx.array([token for _, token, _ in bias]),
            mx.array([value for _, _, value in bias], dtype=mx.float32),
        )
        penalized = any(has_penalty(p) for p in params)
        self._penalties = Penalties(self._rows, vocab_size, penalties) if penalized else None
        self._dry = Dry(self._rows, dry) if any(map(has_dry, params)) else None
        self._bad_words = BadWords(self._rows, bad_words) if any(map(has_bad_words, params)) else None
        self._masks = TokenMasks(self._rows, vocab_size)
        self._random = RandomDraw(self._rows, vocab_size) if any(p.temperature > 0 for p in params) else None

    def draw(self, logits: mx.array, grammar: Sequence[tuple[int, bytes]] = ()) -> Drawn:
        """Draw a token for each row. logits: [rows, vocab], any float; `grammar`: (place of a row, bits)."""
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
