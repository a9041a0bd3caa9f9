"""Log-probabilities of sampled tokens, computed only for the rows that asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from mlx_backend.interface import TokenLogprobs
from mlx_backend.sequence import Sequence as Row


@dataclass(frozen=True, slots=True)
class StepLogprobs:
    """What a step computed for the rows that asked: `places` maps a batch row to a row of the arrays."""

    places: dict[int, int]
    chosen: mx.array
    """float32 [asking rows]"""
    top_ids: mx.array
    """int [asking rows, k], most likely first; k is the largest number anybody asked for"""
    top: mx.array
    """float32 [asking rows, k]"""

    def read(self, rows: Sequence[Row]) -> dict[int, TokenLogprobs]:
        """By batch row, on the host; waits for the device."""
        chosen, ids, top = self.chosen.tolist(), self.top_ids.tolist(), self.top.tolist()
        return {
            row: TokenLogprobs(chosen[place], _pairs(ids[place], top[place], rows[row].request.sampling.num_logprobs))
            for row, place in self.places.items()
        }


def compute_logprobs(logits: mx.array, tokens: mx.array, rows: Sequence[Row]) -> StepLogprobs | None:
    """logits: the model's own, float32 [rows, vocab]; tokens: int [rows]. None where nobody asked."""
    asking = [i for i, row in enumerate(rows) if row.request.sampling.num_logprobs is not None]
    if not asking:
        return None
    num_top = max(rows[i].request.sampling.num_logprobs or 0 for i in asking)
    indices = mx.array(asking, dtype=mx.int32)
    chosen = logits[indices]
    logprobs = chosen - mx.logsumexp(chosen, axis=-1, keepdims=True)
    own = mx.take_along_axis(logprobs, tokens[indices][:, None], axis=-1)[:, 0]
    ids = mx.argpartition(-logprobs, kth=max(num_top - 1, 0), axis=-1)[:, :num_top]
    top = mx.take_along_axis(logprobs, ids, axis=-1)
    order = mx.argsort(-top, axis=-1)
    ids, top = mx.take_along_axis(ids, order, axis=-1), mx.take_along_axis(top, order, axis=-1)
    return StepLogprobs({row: place for place, row in enumerate(asking)}, own, ids, top)


def _pairs(ids: list[int], logprobs: list[float], num_top: int | None) -> tuple[tuple[int, float], ...]:
    return tuple(zip(ids[:num_top], logprobs[:num_top], strict=True))
