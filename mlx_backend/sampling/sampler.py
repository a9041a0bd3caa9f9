"""BatchSampler: one token per row, each row by its own parameters, in a fixed number of device operations.

Order: logit bias, penalties, temperature, top-k, top-p, min-p, then the draw. What no row of the batch
asks for is not computed.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from mlx_backend.sampling.filters import draw, filter_min_p, filter_top_k_top_p
from mlx_backend.sampling.logprobs import StepLogprobs, compute_logprobs
from mlx_backend.sampling.penalties import Penalties, has_penalty
from mlx_backend.sequence import Sequence as Row

_MASK64 = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Drawn:
    """What one step chose: tokens int [rows], and log-probabilities where somebody asked."""

    tokens: mx.array
    logprobs: StepLogprobs | None
    state: tuple[mx.array, ...]
    """Further arrays to evaluate with the step."""

    @property
    def arrays(self) -> list[mx.array]:
        extra = [] if self.logprobs is None else [self.logprobs.chosen, self.logprobs.top_ids, self.logprobs.top]
        return [self.tokens, *extra, *self.state]


class BatchSampler:
    """Parameters of the rows as device arrays; rebuilt when the rows change."""

    def __init__(self) -> None:
        self._rows: list[Row] = []
        self._penalties: Penalties | None = None
        self._is_random = False

    def set_rows(self, rows: Sequence[Row], vocab_size: int) -> None:
        """The rows of the next steps, in batch order."""
        self._rows = list(rows)
        params = [row.request.sampling for row in rows]
        self._is_random = any(p.temperature > 0 for p in params)
        self._is_greedy = mx.array([p.temperature == 0 for p in params])
        self._temperature = _column([p.temperature or 1.0 for p in params])
        self._top_k = mx.array([p.top_k if 0 < p.top_k < vocab_size else vocab_size for p in params])[:, None]
        self._top_p = _column([p.top_p for p in params])
        self._min_p = _column([p.min_p for p in params])
        self._filters_top = any(p.temperature > 0 and (0 < p.top_k < vocab_size or p.top_p < 1) for p in params)
        self._filters_min_p = any(p.temperature > 0 and p.min_p > 0 for p in params)
        bias = [(row, token, value) for row, p in enumerate(params) for token, value in p.logit_bias]
        self._bias = bias and (
            mx.array([row for row, _, _ in bias]),
            mx.array([token for _, token, _ in bias]),
            mx.array([value for _, _, value in bias], dtype=mx.float32),
        )
        penalized = any(has_penalty(p) for p in params)
        self._penalties = Penalties(self._rows, vocab_size, self._penalties) if penalized else None
        for row in rows:
            if row.key is None:
                row.key = base_key(row.request.sampling.seed, row.ordinal)

    def draw(self, logits: mx.array) -> Drawn:
        """Choose a token for each row. logits: [rows, vocab], any float."""
        raw = logits.astype(mx.float32)
        logits = raw
        if self._bias:
            rows, ids, values = self._bias
            logits = logits.at[rows, ids].add(values)
        if self._penalties is not None:
            logits = self._penalties.apply(mx.array(logits))
        tokens = mx.argmax(logits, axis=-1)
        if self._is_random:
            tokens = mx.where(self._is_greedy, tokens, self._draw_random(logits))
        if self._penalties is not None:
            self._penalties.count(tokens)
        state = () if self._penalties is None else (self._penalties.state,)
        return Drawn(tokens, compute_logprobs(raw, tokens, self._rows), state)

    def _draw_random(self, logits: mx.array) -> mx.array:
        logits = logits / self._temperature
        if self._filters_top:
            logits = filter_top_k_top_p(logits, self._top_k, self._top_p)
        if self._filters_min_p:
            logits = filter_min_p(logits, self._min_p)
        keys = [step_key(row.key, row.num_started_tokens) for row in self._rows if row.key is not None]
        return draw(logits, mx.array(keys, dtype=mx.uint32))


def base_key(seed: int | None, ordinal: int) -> int:
    """64 bits that are a row's own: of its seed and which of the n continuations it is; random without a seed."""
    if seed is None:
        return secrets.randbits(64)
    return _mix(_mix(seed & _MASK64) + ordinal)


def step_key(key: int, position: int) -> tuple[int, int]:
    """The random key of one output position, as two 32-bit words."""
    mixed = _mix(key + position)
    return mixed >> 32, mixed & 0xFFFFFFFF


def _mix(value: int) -> int:
    """splitmix64: neighbouring numbers become unrelated ones (Steele et al. 2014, doi 10.1145/2714064.2660195)."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK64
    return value ^ (value >> 31)


def _column(values: Sequence[float]) -> mx.array:
    return mx.array(values, dtype=mx.float32)[:, None]
