"""Self-checks at start-up: does a batch of rows give the logits that one row at a time gives, and do quantized columns
give what their dequantized copies give?

A model's code decides that (an offset it treats as one number, a cache it indexes itself, keys it computes with before
attention does), not the kind of its caches alone. It costs a few forward passes, which also compile what a first
request would wait for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx

from mlx_backend.api.errors import ModelLoadError
from mlx_backend.api.interface import SamplingParams
from mlx_backend.core.row import Row
from mlx_backend.core.step import NewRow
from mlx_backend.kv_cache import latent_attention
from mlx_backend.kv_cache.batch import RowBatch, kinds_by_class
from mlx_backend.kv_cache.grouping import RowBytes
from mlx_backend.kv_cache.latent_groups import FORMS
from mlx_backend.kv_cache.spec import CacheKind, can_group
from mlx_backend.runners.drafts import DraftedStep

_TOLERANCE = 0.15
"""Relative L2 distance of logits. Rounding stays far below it, a wrong position or mask far above."""
_LENGTHS = (9, 4)
_LONG = 23
_NUM_STEPS = 2
_ERRORS = (RuntimeError, ValueError, TypeError, IndexError, AttributeError, NotImplementedError)

MakeCaches = Callable[[], list[Any]]
"""Empty caches of one sequence, one per layer."""


def check_batching(model: Any, make_caches: MakeCaches, vocab_size: int) -> str | None:
    """Return None if two rows of different lengths give the logits of each alone; else what went wrong."""
    prompts = _prompts(vocab_size)
    try:
        alone = [_single(model, make_caches, prompt) for prompt in prompts]
        together = _batched(model, make_caches, prompts)
    except _ERRORS as error:
        return f"its code does not take a batch of rows ({_told(error)})"
    return _difference(alone, together, "a batch of rows changes its logits")


def check_groups(
    model: Any, make_caches: MakeCaches, vocab_size: int, kinds: Sequence[CacheKind] | None = None
) -> str | None:
    """Return None if rows in groups of their own give the logits of one group; else what went wrong.

    `kinds`: of the caches of one sequence, those of a layer with several in order; None: by their classes.
    """
    if not can_group(kinds or kinds_by_class(make_caches())):
        return "its KV cache is of a kind that cannot be grouped"
    prompts = _prompts(vocab_size, (*_LENGTHS, _LONG))
    together = _batched(model, make_caches, prompts)
    try:
        apart = _batched(model, make_caches, prompts, _long_apart, kinds)
    except _ERRORS as error:
        return f"its code computes with keys, values or masks itself ({_told(error)})"
    return _difference(together, apart, "rows in groups change its logits")


def check_drafts(
    model: Any, make_caches: MakeCaches, vocab_size: int, kinds: Sequence[CacheKind] | None = None
) -> str | None:
    """Return None if several tokens of a row in one step give the logits of a step for each; else what went wrong."""
    prompts = _prompts(vocab_size)
    alone = [_single(model, make_caches, prompt) for prompt in prompts]
    try:
        together = _drafted(model, make_caches, prompts, kinds)
    except _ERRORS as error:
        return f"its code does not take several tokens of a row in a step ({_told(error)})"
    return _difference(alone, together, "several tokens of a row in a step change its logits")


def _difference(expected: Sequence[mx.array], got: Sequence[mx.array], what: str) -> str | None:
    """Return `what` happens, with the distance, if some logits differ; None if all are alike."""
    for first, second in zip(expected, got, strict=True):
        distance = _distance(first, second)
        if not distance < _TOLERANCE:
            return f"{what} (relative distance {distance:.2f})"
    return None


def _long_apart(num_tokens: int) -> int:
    """Return a row's bytes such that the long one gets its own group, and the others share one with a mask."""
    return 1 << (50 if num_tokens > max(_LENGTHS) else 40)


def check_columns(model: Any, make_quantized: MakeCaches, make_dequantized: MakeCaches, vocab_size: int) -> str | None:
    """Return None if the model takes quantized columns as it takes their copies; else what went wrong.

    Raises ModelLoadError if it takes neither.
    """
    prompt = _prompts(vocab_size)[0]
    try:
        expected = _single(model, make_dequantized, prompt)
    except _ERRORS as error:
        text = f"kv_cache.bits: this model's code does not take a quantized KV cache ({_told(error)}); leave it unset"
        raise ModelLoadError(text) from error
    try:
        distance = _distance(expected, _single(model, make_quantized, prompt))
    except _ERRORS as error:
        return f"its code computes with keys or values itself ({_told(error)})"
    if not distance < _TOLERANCE:
        return f"quantized columns change its logits (relative distance {distance:.2f})"
    return None


def defer_latents(model: Any, make_caches: MakeCaches, vocab_size: int, takes_groups: bool) -> str | None:
    """Have attention over latents computed in groups of heads, if that gives the model's own logits.

    Returns None, or why a chunk's attention stays the model's own. `takes_groups`: the model's code lets chunks be
    deferred.
    """
    prompt = _prompts(vocab_size)[0]
    expected = _single(model, make_caches, prompt)
    reason = "its code computes with a chunk's latents itself"
    for chunks in (True, False) if takes_groups else (False,):
        latent_attention.defer(model, chunks)
        wrong = _wrong_form(model, make_caches, prompt, expected, chunks)
        if wrong is None:
            return None if chunks else reason
        reason = wrong
        latent_attention.restore(model)
    return reason


def _wrong_form(model: Any, make_caches: MakeCaches, prompt: list[int], expected: mx.array, chunks: bool) -> str | None:
    for form in FORMS if chunks else FORMS[:1]:
        try:
            with latent_attention.forced(form):
                distance = _distance(expected, _single(model, make_caches, prompt))
        except _ERRORS as error:
            return f"its code does not take it otherwise ({_told(error)})"
        if not distance < _TOLERANCE:
            return f"in groups of heads its logits change (relative distance {distance:.2f})"
    return None


def _prompts(vocab_size: int, lengths: tuple[int, ...] = _LENGTHS) -> list[list[int]]:
    return [[(7 * i + 3 * row) % vocab_size for i in range(length)] for row, length in enumerate(lengths)]


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:200]}"


def _distance(expected: mx.array, got: mx.array) -> float:
    return float(mx.linalg.norm(expected - got) / (mx.linalg.norm(expected) + 1e-6))


def _single(model: Any, make_caches: MakeCaches, prompt: list[int]) -> mx.array:
    caches = make_caches()
    _prefill(model, caches, prompt[:-_NUM_STEPS])
    return _evaluated([_step(model, mx.array([[token]]), caches) for token in prompt[-_NUM_STEPS:]])


def _batched(
    model: Any,
    make_caches: MakeCaches,
    prompts: list[list[int]],
    row_bytes: RowBytes | None = None,
    kinds: Sequence[CacheKind] | None = None,
) -> list[mx.array]:
    batch, rows = RowBatch(make_caches(), row_bytes, kinds=kinds), _prefilled(model, make_caches, prompts)
    batch.set_rows(rows)
    steps = []
    for step in range(_NUM_STEPS):
        tokens = mx.array([[prompts[row.id][step - _NUM_STEPS]] for row in batch.rows])
        steps.append(_step(model, tokens, batch.caches))
        batch.advance()
    order = [batch.rows.index(row) for row in rows]
    return [_evaluated([logits[place : place + 1] for logits in steps]) for place in order]


def _drafted(
    model: Any, make_caches: MakeCaches, prompts: list[list[int]], kinds: Sequence[CacheKind] | None
) -> list[mx.array]:
    """Return logits of each prompt's last two tokens: the first computes both in one step, the other one."""
    batch = RowBatch(make_caches(), kinds=kinds, max_drafts=1)
    rows = _prefilled(model, make_caches, prompts)
    counts = {row: 2 if row is rows[0] else 1 for row in rows}
    batch.set_rows(rows, counts)
    order = list(batch.rows)
    step = DraftedStep(order, {0: (prompts[0][-1],)})
    first = step.compute(model, batch, mx.array([prompts[row.id][-2] for row in order]))
    mx.eval(first)
    step.keep(model, batch, counts)
    for row in rows:
        row.num_started_tokens += counts[row]
    batch.prepare()
    second = _step(model, mx.array([[prompts[row.id][-1]] for row in batch.rows]), batch.caches)
    found = []
    for row in rows:
        at, place = step.first_tokens[row.id], batch.rows.index(row)
        found.append([first[at : at + 1], first[at + 1 : at + 2] if counts[row] == 2 else second[place : place + 1]])
    return [_evaluated(each) for each in found]


def _prefilled(model: Any, make_caches: MakeCaches, prompts: list[list[int]]) -> list[Row]:
    """Return a row for each prompt; its last tokens are not computed yet."""
    rows: list[Row] = []
    for place, prompt in enumerate(prompts):
        caches = make_caches()
        _prefill(model, caches, prompt[:-_NUM_STEPS])
        new = NewRow(
            id=place,
            prompt=place,
            ordinal=0,
            prompt_ids=tuple(prompt[: 1 - _NUM_STEPS]),
            max_num_tokens=len(prompt),
            sampling=SamplingParams(),
            key=0,
        )
        rows.append(Row.of(new, caches))
    return rows


def _prefill(model: Any, caches: list[Any], tokens: list[int]) -> None:
    model(mx.array([tokens]), cache=caches)
    mx.eval([cache.state for cache in caches])


def _step(model: Any, tokens: mx.array, caches: list[Any]) -> mx.array:
    """Return the computed logits of a decode step: two steps of a pipeline in one evaluation corrupt each other."""
    logits = model(tokens, cache=caches)[:, -1]
    mx.eval(logits)
    return logits


def _evaluated(steps: list[mx.array]) -> mx.array:
    logits = mx.concatenate(steps).astype(mx.float32)
    mx.eval(logits)
    return logits
