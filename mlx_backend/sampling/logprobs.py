"""Log-probabilities of sampled tokens and of prompts, computed only for the rows that request them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from mlx_backend.api.interface import TokenLogprobs
from mlx_backend.core.row import Row
from mlx_backend.sampling.selection import candidates


@dataclass(frozen=True, slots=True)
class StepLogprobs:
    """Log-probabilities of a step; `places` maps a batch row with logprobs to a row of the arrays."""

    places: dict[int, int]
    chosen: mx.array
    """float32 [logprob rows]"""
    top_ids: mx.array
    """int [logprob rows, k], most likely first; k is the largest number requested"""
    top: mx.array
    """float32 [logprob rows, k]"""
    asked: mx.array | None = None
    """float32 [logprob rows, ids], of each row's `logprob_ids`; None where no row has any."""

    @property
    def arrays(self) -> list[mx.array]:
        """All arrays to be computed."""
        return [self.chosen, self.top_ids, self.top, *([] if self.asked is None else [self.asked])]

    def read(self, rows: Sequence[Row]) -> dict[int, TokenLogprobs]:
        """Return them by batch row, on the host; waits for the device."""
        chosen, ids, top = self.chosen.tolist(), self.top_ids.tolist(), self.top.tolist()
        asked = None if self.asked is None else self.asked.tolist()
        return {
            row: TokenLogprobs(
                chosen[place],
                _pairs(ids[place], top[place], rows[row].sampling.num_logprobs),
                () if asked is None else tuple(asked[place][: len(rows[row].sampling.logprob_ids)]),
            )
            for row, place in self.places.items()
        }


def compute_logprobs(logits: mx.array, tokens: mx.array, rows: Sequence[Row]) -> StepLogprobs | None:
    """Return the log-probabilities of tokens, int [rows], from the model's logits, float32 [rows, vocab].

    None if no row requests any.
    """
    asking = [i for i, row in enumerate(rows) if row.sampling.num_logprobs is not None]
    if not asking:
        return None
    num_top = max(rows[i].sampling.num_logprobs or 0 for i in asking)
    indices = mx.array(asking, dtype=mx.int32)
    own = logits[indices]
    ranked = rank(own, tokens[indices], num_top)
    asked = _asked(own, [rows[i].sampling.logprob_ids for i in asking])
    return StepLogprobs({row: place for place, row in enumerate(asking)}, *ranked, asked)


def _asked(logits: mx.array, ids: Sequence[tuple[int, ...]]) -> mx.array | None:
    """Return the log-probabilities of some tokens of each row; rows with fewer than others have any in their place."""
    most = max(map(len, ids))
    if not most:
        return None
    padded = mx.array([(*row, *(0,) * (most - len(row))) for row in ids], dtype=mx.int32)
    return mx.take_along_axis(logits, padded, axis=-1) - mx.logsumexp(logits, axis=-1, keepdims=True)


def rank(logits: mx.array, tokens: mx.array, num_top: int) -> tuple[mx.array, mx.array, mx.array]:
    """Return the log-probabilities of `tokens` [rows], the ids [rows, num_top] of the likeliest, and theirs, sorted.

    logits: float32 [rows, vocab]. The likeliest come first.
    """
    total = mx.logsumexp(logits, axis=-1, keepdims=True)
    own = mx.take_along_axis(logits, tokens[:, None], axis=-1) - total
    if num_top == 0:
        return own[:, 0], mx.zeros((len(logits), 0), dtype=mx.uint32), mx.zeros((len(logits), 0))
    few, places = candidates(logits, num_top)
    order = mx.argsort(-few, axis=-1)[:, :num_top]
    top = mx.take_along_axis(few, order, axis=-1) - total
    return own[:, 0], mx.take_along_axis(places, order, axis=-1), top


def read_prompt(ranked: tuple[mx.array, mx.array, mx.array]) -> list[TokenLogprobs]:
    """Return the result of `rank` on the host; waits for the device."""
    chosen, ids, top = (part.tolist() for part in ranked)
    return [TokenLogprobs(own, _pairs(ids[i], top[i], None)) for i, own in enumerate(chosen)]


def _pairs(ids: list[int], logprobs: list[float], num_top: int | None) -> tuple[tuple[int, float], ...]:
    return tuple(zip(ids[:num_top], logprobs[:num_top], strict=True))
