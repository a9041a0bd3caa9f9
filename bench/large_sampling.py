"""Top-p, top-k and typical-p over large vocabularies: by a sorted vocabulary, as reference, and by selection.

Best of several runs, milliseconds, with the surplus or missing tokens of each compared with float64. Then the tail of
a step (filters and draw) as it is and under `mx.compile`: microseconds to build its graph, milliseconds in total. Top_p
alone is left out there: each pass would become a separate kernel, which a C++ compiler takes half a minute to build.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
from rich.console import Console
from rich.table import Table

from mlx_backend.sampling import filters, selection

VOCABS = (32_000, 128_256, 151_936, 262_144)
ROWS = (1, 8, 32)
TOP_P = 0.95
SECONDS = 1.0
"""Shortest duration of each measurement."""

Filter = Callable[[mx.array], mx.array]


def print_sampling() -> None:
    """Print two tables."""
    table = Table("vocab", "rows", "filter", "sorted, ms", "selected, ms", "ratio", "tokens off", "by now")
    for vocab in VOCABS:
        for rows in ROWS:
            logits = mx.random.normal((rows, vocab), key=mx.random.key(vocab + rows)) * 3
            mx.eval(logits)
            for name, before, now, top_k in _filters(rows, vocab):
                took = [1e3 * _best(each, logits) for each in (before, now)]
                off = ["-", "-"] if top_k is None else [_off(each(logits), logits, top_k) for each in (before, now)]
                times = (f"{took[0]:.2f}", f"{took[1]:.2f}", f"{took[0] / took[1]:.1f}")
                table.add_row(f"{vocab}", f"{rows}", name, *times, *off)
    Console().print(table)
    _print_compiled()


def _filters(rows: int, vocab: int) -> list[tuple[str, Filter, Filter, int | None]]:
    """Return (name, sorted, selected, top_k of the nucleus in float64)."""
    top_p, all_k, few_k = mx.full((rows, 1), TOP_P), mx.full((rows, 1), vocab), mx.full((rows, 1), 20)
    return [
        (
            "top_p",
            lambda x: _sorted_top_k_top_p(x, all_k, top_p),
            lambda x: filters.filter_top_p(x, top_p),
            vocab,
        ),
        (
            "top_k 20, top_p",
            lambda x: _sorted_top_k_top_p(x, few_k, top_p),
            lambda x: filters.filter_few(x, few_k, top_p, 20),
            20,
        ),
        (
            "typical_p",
            lambda x: _sorted_typical_p(x, top_p),
            lambda x: filters.filter_typical_p(x, top_p),
            None,
        ),
        (
            "20 logprobs",
            lambda x: mx.argpartition(-x, kth=19, axis=-1)[:, :20],
            lambda x: selection.candidates(x, 20)[1],
            None,
        ),
    ]


def _best(compute: Filter, logits: mx.array) -> float:
    mx.eval(compute(logits))
    took: list[float] = []
    until = time.perf_counter() + SECONDS
    while time.perf_counter() < until or len(took) < 3:
        began = time.perf_counter()
        mx.eval(compute(logits))
        took.append(time.perf_counter() - began)
    return min(took)


def _off(filtered: mx.array, logits: mx.array, top_k: int) -> str:
    """Return the largest difference of a row's kept tokens from float64, and the expected number."""
    largest = (0, 0)
    for row in range(len(logits)):
        weights = np.sort(np.exp(np.array(logits[row]).astype(np.float64)))[::-1]
        weights = weights[weights >= weights[top_k - 1]]  # top_k keeps ties of the last, too
        expected = int(np.sum(np.cumsum(weights) - weights < float(np.float32(TOP_P)) * weights.sum()))
        found = int(mx.sum(filtered[row] > -float("inf")).item())
        largest = max(largest, (abs(found - expected), expected))
    return f"{largest[0]}" + (f" of {largest[1]}" if largest[0] else "")


def _sorted_top_k_top_p(logits: mx.array, top_k: mx.array, top_p: mx.array) -> mx.array:
    never, vocab = -float("inf"), logits.shape[-1]
    ranked = mx.sort(logits, axis=-1)[:, ::-1]
    ranked = mx.where(mx.arange(vocab)[None] < top_k, ranked, never)
    probabilities = mx.softmax(ranked, axis=-1, precise=True)
    mass_before = mx.cumsum(probabilities, axis=-1) - probabilities
    num_kept = mx.sum(((mass_before < top_p) | (top_p >= 1)) & (ranked > never), axis=-1, keepdims=True)
    threshold = mx.take_along_axis(ranked, mx.maximum(num_kept - 1, 0), axis=-1)
    return mx.where(logits < threshold, never, logits)


def _sorted_typical_p(logits: mx.array, typical_p: mx.array) -> mx.array:
    logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    probabilities = mx.exp(logprobs)
    entropy = mx.sum(-probabilities * logprobs, axis=-1, keepdims=True)
    oddness = mx.abs(-logprobs - entropy)
    order = mx.argsort(oddness, axis=-1)
    ranked = mx.take_along_axis(probabilities, order, axis=-1)
    num_kept = mx.sum(mx.cumsum(ranked, axis=-1) - ranked < typical_p, axis=-1, keepdims=True)
    last = mx.take_along_axis(order, mx.maximum(num_kept - 1, 0), axis=-1)
    return mx.where(oddness > mx.take_along_axis(oddness, last, axis=-1), -float("inf"), logits)


def _print_compiled() -> None:
    """Print filters and draw, as functions of logits and keys."""
    tails: dict[str, Callable[[int], Filter]] = {
        "min_p": lambda rows: lambda x: filters.filter_min_p(x, mx.full((rows, 1), 0.05)),
        "top_k 20, top_p": lambda rows: (
            lambda x: filters.filter_few(x, mx.full((rows, 1), 20), mx.full((rows, 1), TOP_P), 20)
        ),
    }
    table = Table(
        "tail of a step", "rows", "first, ms", "graph, us", "in all, ms", "compiled: first", "graph", "in all"
    )
    for name, build in tails.items():
        for rows in ROWS:
            logits = mx.random.normal((rows, VOCABS[1]), key=mx.random.key(rows))
            keys = mx.array([[7, row] for row in range(rows)], dtype=mx.uint32)
            mx.eval(logits, keys)
            keep = build(rows)

            def tail(logits: mx.array, keys: mx.array, keep: Filter = keep) -> mx.array:
                return filters.draw(keep(logits / 0.7), keys)

            table.add_row(name, f"{rows}", *_step(tail, logits, keys), *_step(mx.compile(tail), logits, keys))
    Console().print(table)


def _step(tail: Callable[..., Any], logits: mx.array, keys: mx.array) -> tuple[str, str, str]:
    began = time.perf_counter()
    mx.eval(tail(logits, keys))
    first = time.perf_counter() - began
    built: list[float] = []
    took: list[float] = []
    until = time.perf_counter() + SECONDS
    while time.perf_counter() < until or len(took) < 3:
        began = time.perf_counter()
        tokens = tail(logits, keys)
        built.append(time.perf_counter() - began)
        mx.eval(tokens)
        took.append(time.perf_counter() - began)
    return f"{1e3 * first:.0f}", f"{1e6 * min(built):.0f}", f"{1e3 * min(took):.2f}"
