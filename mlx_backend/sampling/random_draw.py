"""The random choice of a step: temperature, the filters that some row asks for, and the draw."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import mlx.core as mx

from mlx_backend.api.interface import SamplingParams
from mlx_backend.core.row import Row
from mlx_backend.sampling.filters import (
    draw,
    filter_min_p,
    filter_top_k_top_p,
    filter_top_n_sigma,
    filter_typical_p,
    filter_xtc,
)
from mlx_backend.sampling.keys import step_chance, step_key
from mlx_backend.sampling.masks import row_tokens


class RandomDraw:
    """Parameters of the rows as device arrays. Built anew when the rows change."""

    def __init__(self, rows: Sequence[Row], vocab_size: int) -> None:
        self._rows = list(rows)
        params = [row.sampling for row in rows]
        self._is_greedy = mx.array([p.temperature == 0 for p in params])
        self._temperature = _column([p.temperature or 1.0 for p in params])
        self._filters = _filters(params, vocab_size)
        self._xtc_threshold = _column([p.xtc_threshold for p in params])
        kept = [row.stop_ids | {*row.sampling.xtc_kept_ids} if _has_xtc(row) else () for row in rows]
        self._xtc_kept = row_tokens(kept, vocab_size)

    def draw(self, logits: mx.array, greedy: mx.array) -> mx.array:
        """A token for each row, int [rows]: of `greedy` where the temperature is 0. logits: float32 [rows, vocab]."""
        logits = logits / self._temperature
        for each in self._filters:
            logits = each(logits)
        is_active = [_has_xtc(row) and _chance(row) < row.sampling.xtc_probability for row in self._rows]
        if any(is_active):
            logits = filter_xtc(logits, self._xtc_threshold, mx.array(is_active)[:, None], self._xtc_kept)
        keys = [step_key(row.new.key, row.num_started_tokens) for row in self._rows]
        return mx.where(self._is_greedy, greedy, draw(logits, mx.array(keys, dtype=mx.uint32)))


def _filters(params: Sequence[SamplingParams], vocab_size: int) -> list[Callable[[mx.array], mx.array]]:
    """Those that a row with a temperature asks for, in their order."""
    asking = [p for p in params if p.temperature > 0]
    filters: list[Callable[[mx.array], mx.array]] = []
    if any(p.top_n_sigma > 0 for p in asking):
        filters.append(partial(filter_top_n_sigma, n=_column([p.top_n_sigma for p in params])))
    if any(0 < p.top_k < vocab_size or p.top_p < 1 for p in asking):
        top_k = mx.array([p.top_k if 0 < p.top_k < vocab_size else vocab_size for p in params])[:, None]
        filters.append(partial(filter_top_k_top_p, top_k=top_k, top_p=_column([p.top_p for p in params])))
    if any(p.min_p > 0 for p in asking):
        filters.append(partial(filter_min_p, min_p=_column([p.min_p for p in params])))
    if any(p.typical_p < 1 for p in asking):
        filters.append(partial(filter_typical_p, typical_p=_column([p.typical_p for p in params])))
    return filters


def _has_xtc(row: Row) -> bool:
    params = row.sampling
    return params.temperature > 0 and params.xtc_probability > 0


def _chance(row: Row) -> float:
    """Whether XTC acts is drawn anew for each token."""
    return step_chance(row.new.key, row.num_started_tokens)


def _column(values: Sequence[float]) -> mx.array:
    return mx.array(values, dtype=mx.float32)[:, None]
