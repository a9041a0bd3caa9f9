"""A self-check at start-up: does a batch of rows give the logits that one row at a time gives?

A model's code decides that (an offset it takes for one number, a cache it indexes itself), not the kind
of its caches alone. It costs a few forward passes, which also compile what a first request would wait for.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache

from mlx_backend.interface import GenerationRequest
from mlx_backend.kv_cache.batch import RowBatch
from mlx_backend.sequence import Prefill, Sequence

_TOLERANCE = 0.15
"""Relative L2 distance of logits. Rounding stays far below it, a wrong position or mask far above."""
_LENGTHS = (9, 4)
_NUM_STEPS = 2


def check_batching(model: Any, vocab_size: int) -> str | None:
    """None where two rows of different lengths give the logits of each alone; else what went wrong."""
    prompts = [[(7 * i + 3 * row) % vocab_size for i in range(length)] for row, length in enumerate(_LENGTHS)]
    try:
        alone = [_single(model, prompt) for prompt in prompts]
        together = _batched(model, prompts)
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError, NotImplementedError) as error:
        return f"its code does not take a batch of rows ({type(error).__name__}: {str(error)[:200]})"
    for expected, got in zip(alone, together, strict=True):
        distance = float(mx.linalg.norm(expected - got) / (mx.linalg.norm(expected) + 1e-6))
        if not distance < _TOLERANCE:
            return f"a batch of rows changes its logits (relative distance {distance:.2f})"
    return None


def _single(model: Any, prompt: list[int]) -> mx.array:
    caches = make_prompt_cache(model)
    _prefill(model, caches, prompt[:-_NUM_STEPS])
    steps = [model(mx.array([[token]]), cache=caches)[:, -1] for token in prompt[-_NUM_STEPS:]]
    return _evaluated(steps)


def _batched(model: Any, prompts: list[list[int]]) -> list[mx.array]:
    batch = RowBatch(make_prompt_cache(model))
    rows: list[Sequence] = []
    for prompt in prompts:
        request = GenerationRequest(request_id="probe", prompt_ids=tuple(prompt[: 1 - _NUM_STEPS]), max_tokens=1)
        prefill = Prefill(request, state=make_prompt_cache(model))
        _prefill(model, prefill.state, prompt[:-_NUM_STEPS])
        rows.append(Sequence(prefill, len(rows), 0))
    batch.set_rows(rows)
    steps = []
    for step in range(_NUM_STEPS):
        tokens = mx.array([[prompts[row.index][step - _NUM_STEPS]] for row in batch.rows])
        steps.append(model(tokens, cache=batch.caches)[:, -1])
        batch.advance()
    order = [batch.rows.index(row) for row in rows]
    return [_evaluated([logits[place : place + 1] for logits in steps]) for place in order]


def _prefill(model: Any, caches: list[Any], tokens: list[int]) -> None:
    model(mx.array([tokens]), cache=caches)
    mx.eval([cache.state for cache in caches])


def _evaluated(steps: list[mx.array]) -> mx.array:
    logits = mx.concatenate(steps).astype(mx.float32)
    mx.eval(logits)
    return logits
