"""The random choice of a step: temperature, the filters that any row uses, and the draw."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import mlx.core as mx

from mlx_backend.api.interface import SamplingParams
from mlx_backend.core.row import Row
from mlx_backend.sampling.filters import (
    draw,
    filter_few,
    filter_min_p,
    filter_top_k,
    filter_top_n_sigma,
    filter_top_p,
    filter_typical_p,
    filter_xtc,
    most_few,
)
from mlx_backend.sampling.keys import step_chance, step_key
from mlx_backend.sampling.masks import row_tokens


class RandomDraw:
    """Parameters of the rows as device arrays, rebuilt when the rows change."""

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
        """Return a token per row, int [rows], from `greedy` if its temperature is 0. logits: float32 [rows, vocab]."""
        logits = logits / self._temperature
        for each in self._filters:
            logits = each(logits)
        is_active = [_has_xtc(row) and _chance(row) < row.sampling.xtc_probability for row in self._rows]
        if any(is_active):
            logits = filter_xtc(logits, self._xtc_threshold, mx.array(is_active)[:, None], self._xtc_kept)
        keys = [step_key(row.new.key, row.num_started_tokens) for row in self._rows]
        return mx.where(self._is_greedy, greedy, draw(logits, mx.array(keys, dtype=mx.uint32)))


def _filters(params: Sequence[SamplingParams], vocab_size: int) -> list[Callable[[mx.array], mx.array]]:
    """Return the filters that rows with a temperature use, in order."""
    asking = [p for p in params if p.temperature > 0]
    filters: list[Callable[[mx.array], mx.array]] = []
    if any(p.top_n_sigma > 0 for p in asking):
        filters.append(partial(filter_top_n_sigma, n=_column([p.top_n_sigma for p in params])))
    filters += _top_filters(params, vocab_size)
    if any(p.min_p > 0 for p in asking):
        filters.append(partial(filter_min_p, min_p=_column([p.min_p for p in params])))
    if any(p.typical_p < 1 for p in asking):
        filters.append(partial(filter_typical_p, typical_p=_column([p.typical_p for p in params])))
    return filters


def _top_filters(params: Sequence[SamplingParams], vocab_size: int) -> list[Callable[[mx.array], mx.array]]:
    """Return top-k and top-p filters. A row's own parameters choose its filter: it draws the same in any batch."""
    asking = [p if p.temperature > 0 else SamplingParams() for p in params]
    top_k = [p.top_k if 0 < p.top_k < vocab_size else vocab_size for p in asking]
    largest_few = min(most_few(vocab_size), vocab_size - 1)
    is_few = [k <= largest_few for k in top_k]
    few = [k if each else vocab_size for k, each in zip(top_k, is_few, strict=True)]
    many = [vocab_size if each else k for k, each in zip(top_k, is_few, strict=True)]
    few_top_p = [p.top_p if each else 1.0 for p, each in zip(asking, is_few, strict=True)]
    top_p = [1.0 if each else p.top_p for p, each in zip(asking, is_few, strict=True)]
    filters: list[Callable[[mx.array], mx.array]] = []
    if any(is_few):
        most = max(k for k in few if k <= largest_few)
        column = _column(few_top_p) if min(few_top_p) < 1 else None
        filters.append(partial(filter_few, top_k=mx.array(few)[:, None], top_p=column, most=most))
    if min(many) < vocab_size:
        filters.append(partial(filter_top_k, top_k=mx.array(many)[:, None]))
    if min(top_p) < 1:
        filters.append(partial(filter_top_p, top_p=_column(top_p)))
    return filters


def _has_xtc(row: Row) -> bool:
    params = row.sampling
    return params.temperature > 0 and params.xtc_probability > 0


def _chance(row: Row) -> float:
    """Return the number that decides whether XTC applies, drawn anew for each token."""
    return step_chance(row.new.key, row.num_started_tokens)


def _column(values: Sequence[float]) -> mx.array:
    return mx.array(values, dtype=mx.float32)[:, None]
