"""Shapes that repeat, for a device that prepares kernels for each (CUDA): padded chunks, and those to warm up at start.

MLX for CUDA prepares attention by the number of a chunk's tokens and of all that they attend to, and products by the
former. So the last chunk of a prompt is padded up to a size of the ladder: with tokens after its own, which those do
not attend to; their columns are then trimmed. Neither a state nor a window that has wrapped around can be trimmed:
models that have one compute every last chunk as long as it is.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import mlx.core as mx

from mlx_backend.api.interface import LoadProgress, SamplingParams
from mlx_backend.core.row import Row
from mlx_backend.core.step import NewRow
from mlx_backend.kv_cache import spec
from mlx_backend.kv_cache.batch import RowBatch, SingleBatch
from mlx_backend.kv_cache.plan import CachePlan
from mlx_backend.planning.admission import Budget, Reservation
from mlx_backend.planning.chunk_sizes import padded_sizes
from mlx_backend.sampling.sampler import BatchSampler

logger = logging.getLogger("pippin.mlx")

_MOST_S = 60.0
"""Seconds that warming up may add to the start; a shape that is being prepared is finished."""
_NUM_CHUNKS = 8
"""Whole chunks of a long prompt that are computed one after the other."""
_LENGTHS = (3, 2)
"""Tokens of the rows that decode steps are warmed up with: rows of one length take another path than others."""
_ERRORS = (RuntimeError, ValueError, TypeError, IndexError, MemoryError)

Task = Callable[[], None]


def can_pad(plans: Sequence[CachePlan]) -> bool:
    """Return whether columns at the end of these caches can be trimmed."""
    return all(plan.shape.traits.is_cut for plan in plans)


def compute_padded(
    model: Any, token_ids: tuple[int, ...], size: int, stop: int, caches: Sequence[Any], plans: Sequence[CachePlan]
) -> None:
    """Build a chunk that ends at `stop` into its caches, computed as one of `size` tokens. Nothing is evaluated."""
    padding = token_ids[-1:] * (size - len(token_ids))  # any token will do
    model(mx.array(token_ids + padding)[None], cache=caches)
    leaves = (leaf for cache in caches for leaf in spec.leaves(cache))
    for leaf, plan in zip(leaves, plans, strict=True):
        plan.shape.traits.handler.set_length(leaf, stop)


class Warming:
    """Computations before the first request, a task for each shape. `max_rows`: sequences that decode together."""

    def __init__(
        self,
        model: Any,
        make_caches: Callable[[], list[Any]],
        make_batch: Callable[[], RowBatch | SingleBatch],
        vocab_size: int,
        *,
        max_chunk: int,
        max_rows: int,
        context: int,
        budget: Budget | None,
    ) -> None:
        self._model, self._make_caches, self._make_batch = model, make_caches, make_batch
        self._vocab_size, self._max_chunk, self._max_rows = vocab_size, min(max_chunk, context), max_rows
        self._context, self._budget = context, budget

    def run(self, report: Callable[[LoadProgress], None], weights_bytes: int, *, most_s: float = _MOST_S) -> int:
        """Run the tasks in order, and `report` each; return how many there was time for."""
        tasks = list(self._tasks())
        began, done = time.monotonic(), 0
        try:
            for task in tasks:
                if time.monotonic() - began > most_s:
                    break
                report(_progress(weights_bytes, done, len(tasks)))
                task()
                done += 1
        except _ERRORS as error:
            logger.warning("warming up ended early: %s", error)
        mx.clear_cache()
        logger.info("warmed up %d of %d shapes in %.1f s", done, len(tasks), time.monotonic() - began)
        return done

    def _tasks(self) -> Iterator[Task]:
        """Yield prompts of one chunk, decode steps of every number of rows, then further chunks of a long prompt."""
        for size in padded_sizes(self._max_chunk):
            if self._fits(size, size):
                yield lambda size=size: self._chunk(size, self._make_caches())  # type: ignore[misc]
        for lengths in _LENGTHS, _LENGTHS[:1]:
            yield from self._steps(lengths)
        caches: list[Any] = self._make_caches()
        for number in range(min(_NUM_CHUNKS, self._context // self._max_chunk)):
            if self._fits(self._max_chunk, (number + 1) * self._max_chunk):
                yield lambda: self._chunk(self._max_chunk, caches)

    def _fits(self, size: int, stop: int) -> bool:
        claim = Reservation(1, stop, stop)
        return self._budget is None or (
            self._budget.admits([claim]) and self._budget.step_for([claim], stop, size) == size
        )

    def _chunk(self, size: int, caches: list[Any]) -> None:
        self._model(mx.array([[token % self._vocab_size for token in range(size)]]), cache=caches)
        mx.eval([cache.state for cache in caches])

    def _steps(self, lengths: Sequence[int]) -> Iterator[Task]:
        """Yield steps with one row more each, of these lengths in turn."""
        batch, sampler = self._make_batch(), BatchSampler()
        rows: list[Row] = []

        def step(length: int) -> None:
            caches = self._make_caches()
            self._chunk(length, caches)
            rows.append(Row.of(_new_row(len(rows), length), caches))
            batch.set_rows(rows)
            sampler.set_rows(batch.rows, self._vocab_size)
            logits = self._model(mx.zeros((len(rows), 1), dtype=mx.uint32), cache=batch.caches)[:, -1]
            mx.eval(sampler.draw(logits).arrays)

        for place in range(self._max_rows):
            longest = max(lengths) + 2
            claims = [Reservation(1, longest, longest)] * (place + 1)
            if self._budget is None or self._budget.admits(claims):
                yield lambda place=place: step(lengths[place % len(lengths)])  # type: ignore[misc]


def _progress(weights_bytes: int, done: int, total: int) -> LoadProgress:
    return LoadProgress(done_bytes=weights_bytes, total_bytes=weights_bytes, num_warmed=done, num_to_warm=total)


def _new_row(name: int, length: int) -> NewRow:
    prompt_ids, params = (0,) * (length + 1), SamplingParams()
    return NewRow(
        id=name, prompt=name, ordinal=0, prompt_ids=prompt_ids, max_num_tokens=length + 2, sampling=params, key=0
    )
