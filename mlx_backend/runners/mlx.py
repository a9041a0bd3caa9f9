"""The MLX runner: chunks into single caches, decode steps over a batch of rows.

Everything here runs on the device thread: MLX streams belong to a thread. A step is built and handed to
the device without waiting; reading its tokens, a step later, is the only wait.
"""

from __future__ import annotations

import collections.abc
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache

from mlx_backend.checkpoint import Checkpoint, open_checkpoint
from mlx_backend.errors import ModelLoadError, OutOfMemory, SequenceFailed
from mlx_backend.interface import EngineConfig, LoadProgress, ModelInfo
from mlx_backend.kv_cache import spec
from mlx_backend.kv_cache.batch import RowBatch, SingleBatch
from mlx_backend.loader import count_parameters, load_model
from mlx_backend.runners.base import Sampled, Step
from mlx_backend.runners.probe import check_batching
from mlx_backend.sampling.sampler import BatchSampler, Drawn
from mlx_backend.scheduler import Chunk
from mlx_backend.sequence import Prefill, Sequence

logger = logging.getLogger("pippin.mlx")

_CLEAR_EVERY_STEPS = 256
"""Freed buffers are kept for reuse, by size; as contexts grow the sizes stop fitting. mlx-lm clears as often."""


@dataclass(frozen=True, slots=True)
class _InFlight:
    drawn: Drawn
    rows: list[Sequence]


class MLXRunner:
    """Implements `runners.base.Runner` over a model of mlx-lm."""

    def __init__(self, config: EngineConfig) -> None:
        if config.kv_cache.bits is not None:
            raise ModelLoadError("kv_cache.bits is not supported by the mlx backend yet; leave it unset")
        self._config = config
        self._num_steps = 0
        self._last_tokens: mx.array | None = None

    # ---- loading ----

    def load(self, report: Callable[[LoadProgress], None]) -> ModelInfo:
        checkpoint = open_checkpoint(Path(self._config.model_path))
        limit = self._context_limit(checkpoint)
        self._model = load_model(checkpoint, report)
        template = self._make_caches()
        reason = spec.unbatched_reason(template)
        self._vocab_size = self._probe_vocab()
        if reason is None:
            reason = check_batching(self._model, self._vocab_size)
        self._is_batched = reason is None
        self._reset()
        arrays = [array for _, array in tree_flatten(self._model.parameters())]
        return ModelInfo(
            context_limit=limit,
            vocab_size=self._vocab_size,
            num_parameters=count_parameters(self._model),
            weights_bytes=sum(array.nbytes for array in arrays),
            is_batched=self._is_batched,
            unbatched_reason=reason,
            kv_cache_kinds=spec.count_kinds(template),
        )

    def _context_limit(self, checkpoint: Checkpoint) -> int:
        own, configured = checkpoint.context_length, self._config.context.limit
        if configured is not None and configured > own:
            raise ModelLoadError(f"context.limit {configured} is more than the model's own {own}; lower it")
        return configured or own

    def _make_caches(self) -> list[Any]:
        caches: list[Any] = make_prompt_cache(self._model)
        return caches

    def _probe_vocab(self) -> int:
        """The width of the logits, from their shape: nothing is computed."""
        return int(self._model(mx.zeros((1, 1), dtype=mx.int32), cache=self._make_caches()).shape[-1])

    # ---- prefill ----

    def prefill(self, chunk: Chunk) -> None:
        prefill = chunk.prefill
        tokens = prefill.request.prompt_ids[chunk.start : chunk.start + chunk.num_tokens]
        try:
            if prefill.state is None:
                prefill.state = self._make_caches()
            # Only the caches are evaluated: a chunk's logits are never computed.
            self._model(mx.array(tokens)[None], cache=prefill.state)
            mx.eval([cache.state for cache in prefill.state])
            mx.clear_cache()
        except (RuntimeError, ValueError, TypeError, IndexError, MemoryError) as error:
            prefill.state = None
            raise _failed("prefill", error, prefill.sequences) from error

    # ---- decode ----

    def start(self, sequences: collections.abc.Sequence[Sequence]) -> Step:
        try:
            drawn = self._start(sequences)
        except (RuntimeError, ValueError, TypeError, IndexError, MemoryError) as error:
            self._reset()
            raise _failed("decode", error, sequences) from error
        rows = list(self._batch.rows)
        for sequence in rows:
            sequence.num_started_tokens += 1
        self._num_steps += 1
        if self._num_steps % _CLEAR_EVERY_STEPS == 0:
            mx.clear_cache()
        return Step(tuple(rows), _InFlight(drawn, rows))

    def _start(self, sequences: collections.abc.Sequence[Sequence]) -> Drawn:
        previous = list(self._batch.rows)
        if len(previous) != len(sequences) or set(previous) != set(sequences):
            self._batch.set_rows(sequences)
            self._sampler.set_rows(self._batch.rows, self._vocab_size)
            self._release(sequences)
        inputs = self._inputs(previous)
        logits = self._model(inputs[:, None], cache=self._batch.caches)[:, -1]
        self._batch.advance()
        drawn = self._sampler.draw(logits)
        mx.async_eval(drawn.arrays)
        self._last_tokens = drawn.tokens
        return drawn

    def _inputs(self, previous: list[Sequence]) -> mx.array:
        """Each row's newest token, [rows]: from the step in flight where the row was in it, else from the host."""
        rows = self._batch.rows
        if rows == previous and self._last_tokens is not None:
            return self._last_tokens
        places = {sequence: place for place, sequence in enumerate(previous)} if self._last_tokens is not None else {}
        joined = [row for row in rows if row not in places]
        places |= {row: len(previous) + place for place, row in enumerate(joined)}
        known = mx.array([row.last_token for row in joined], dtype=mx.uint32)
        tokens = known if self._last_tokens is None else mx.concatenate([self._last_tokens.astype(mx.uint32), known])
        base = len(previous) if self._last_tokens is None else 0
        return tokens[mx.array([places[row] - base for row in rows], dtype=mx.int32)]

    def _release(self, sequences: collections.abc.Sequence[Sequence]) -> None:
        """Drop the single caches that no further sequence will continue."""
        for sequence in sequences:
            if sequence.prefill.state is not None and not sequence.prefill.is_wanted:
                sequence.prefill.state = None

    def collect(self, step: Step) -> list[Sampled]:
        in_flight: _InFlight = step.state
        try:
            mx.eval(in_flight.drawn.arrays)
        except (RuntimeError, ValueError, MemoryError) as error:
            self._reset()
            raise _failed("decode", error, step.sequences) from error
        tokens = in_flight.drawn.tokens.tolist()
        asked = in_flight.drawn.logprobs
        logprobs = {} if asked is None else asked.read(in_flight.rows)
        return [Sampled(row, tokens[i], logprobs.get(i)) for i, row in enumerate(in_flight.rows)]

    # ---- between ----

    def _reset(self) -> None:
        self._batch = RowBatch(self._make_caches()) if self._is_batched else SingleBatch(self._make_caches)
        self._sampler = BatchSampler()
        self._last_tokens = None

    def idle(self) -> None:
        self._reset()
        mx.clear_cache()

    def kv_bytes(self, prefills: Iterable[Prefill]) -> int:
        single = [cache for prefill in prefills for cache in prefill.state or ()]
        return int(self._batch.nbytes) + sum(int(cache.nbytes) for cache in single if not cache.empty())

    def interrupt(self) -> None:
        """Nothing here only waits."""

    def close(self) -> None:
        for name in ("_model", "_batch", "_sampler", "_last_tokens"):
            self.__dict__.pop(name, None)
        mx.synchronize()
        mx.clear_cache()
        # Without it the thread's streams are torn down while the process exits, which aborts it now and then.
        mx.clear_streams()


def _failed(what: str, error: BaseException, sequences: collections.abc.Iterable[Sequence]) -> SequenceFailed:
    text = str(error).strip() or type(error).__name__
    is_memory = isinstance(error, MemoryError) or "memory" in text.lower() or "[malloc" in text
    if is_memory:
        return OutOfMemory(f"the device ran out of memory in a {what}: {text}", sequences)
    return SequenceFailed(f"a {what} failed: {text}", sequences)
