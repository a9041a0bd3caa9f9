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
from mlx_lm.models.cache import make_prompt_cache

from mlx_backend.admission import Budget
from mlx_backend.checkpoint import Checkpoint, open_checkpoint
from mlx_backend.errors import GrammarFailed, ModelLoadError
from mlx_backend.interface import EmbeddingInfo, EngineConfig, LoadProgress, MemoryReport, ModelInfo
from mlx_backend.kv_cache import attention, plan, spec
from mlx_backend.kv_cache.batch import RowBatch, SingleBatch
from mlx_backend.kv_cache.build import quantized
from mlx_backend.kv_cache.plan import CachePlan
from mlx_backend.limits import Limits, decide_limits, for_process, report_memory
from mlx_backend.loader import build_model, count_parameters, read_weights
from mlx_backend.memory import ModelShape
from mlx_backend.pooling import read_pooling
from mlx_backend.prefix_cache.store_mlx import MLXStore
from mlx_backend.runners import device, vectors
from mlx_backend.runners.base import Sampled, Step, failed, limited_by
from mlx_backend.runners.probe import check_batching, check_columns
from mlx_backend.sampling.grammar import Masks, needs_mask, read_masks
from mlx_backend.sampling.logprobs import rank, read_prompt
from mlx_backend.sampling.sampler import BatchSampler, Drawn
from mlx_backend.scheduler import Chunk
from mlx_backend.sequence import Prefill, Sequence
from mlx_backend.skeleton import read_model

logger = logging.getLogger("pippin.mlx")

_CLEAR_EVERY_STEPS = 256
"""Freed buffers are kept for reuse, by size; as contexts grow the sizes stop fitting. mlx-lm clears as often."""
_LOGITS_BYTES = 64 << 20
"""Of a prompt's float32 logits, so many at a time. A model computes the logits of all its input or of nothing."""


@dataclass(frozen=True, slots=True)
class _InFlight:
    drawn: Drawn
    rows: list[Sequence]


class MLXRunner:
    """Implements `runners.base.Runner` over a model of mlx-lm."""

    budget: Budget | None = None
    prefix_store: MLXStore | None = None

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._num_steps = 0
        self._last_tokens: mx.array | None = None
        self._plans: tuple[CachePlan, ...] = ()
        self._is_dequantized = False
        self._embedding: EmbeddingInfo | None = None

    # ---- loading ----

    def load(self, report: Callable[[LoadProgress], None]) -> ModelInfo:
        checkpoint = open_checkpoint(Path(self._config.model_path))
        for note in checkpoint.notes:
            logger.warning("%s: %s", checkpoint.path.name, note)
        limit = self._context_limit(checkpoint)
        self._model = build_model(checkpoint)
        skeleton = read_model(self._model, checkpoint.config)
        self._vocab_size = skeleton.shape.vocab_size
        self._plans = plan.plan_caches(skeleton.caches, self._config.kv_cache)
        memory, limits = self._plan_memory(skeleton.shape)
        fitting = limit if self.budget is None else min(limit, self.budget.largest_alone(1))
        if fitting == 0 and memory is not None:
            raise ModelLoadError(_too_large(memory, checkpoint))
        if limits is not None:
            device.apply_limits(limits, self)
        read_weights(self._model, checkpoint, report)
        dequantized_reason = self._check_columns()
        reason = spec.unbatched_reason(make_prompt_cache(self._model))
        if reason is None:
            self.prefix_store = MLXStore(self._plans, self._make_caches, lambda: self._batch)
            reason = check_batching(self._model, self._make_caches, self._vocab_size)
        if reason is None and limits is not None:
            reason = limits.single_reason
        self._is_batched = reason is None
        no_embedding_reason = self._read_embedding(checkpoint, skeleton.shape.hidden_size)
        self._reset()
        return ModelInfo(
            context_limit=fitting,
            context_limited_by=limited_by(self._config.context, limit, fitting),
            vocab_size=self._vocab_size,
            num_parameters=count_parameters(self._model),
            weights_bytes=skeleton.shape.weights_bytes,
            memory=memory,
            is_batched=self._is_batched,
            unbatched_reason=reason,
            kv_caches=plan.report(self._plans, self._config.kv_cache),
            dequantized_reason=dequantized_reason,
            embedding=self._embedding,
            no_embedding_reason=no_embedding_reason,
        )

    def _context_limit(self, checkpoint: Checkpoint) -> int:
        own, configured = checkpoint.context_length, self._config.context.limit
        if configured is not None and configured > own:
            raise ModelLoadError(f"context.limit {configured} is more than the model's own {own}; lower it")
        return configured or own

    def _plan_memory(self, shape: ModelShape) -> tuple[MemoryReport, Limits] | tuple[None, None]:
        """Divide the memory, before a weight is read. None where no limit is known."""
        given, facts = self._config.memory, device.read_facts()
        share = self._config.share
        limit, basis = given.limit_bytes, "memory.limit_gb"
        if share is not None:
            limit, basis = share.share_bytes, "its share beside the other models"
        elif limit is None:
            limit, basis = device.memory_limit(facts)
        if limit is None:
            return None, None
        limits = decide_limits(
            facts, given.wired, given.cache_bytes, limit_bytes=limit, weights_bytes=shape.weights_bytes
        )
        if share is not None:
            limits = for_process(limits, facts, share.process_bytes)
        memory = report_memory(given, facts, limits, limit_bytes=limit, basis=basis, weights_bytes=shape.weights_bytes)
        self.budget = Budget(
            shape,
            self._plans,
            memory.free_bytes,
            max_chunk=self._config.scheduler.max_chunk_tokens,
            has_fused=device.has_fused_attention(),
        )
        return memory, limits

    @property
    def _is_quantized(self) -> bool:
        return any(each.is_quantized for each in self._plans)

    def _make_caches(self, is_dequantized: bool | None = None) -> list[Any]:
        caches: list[Any] = make_prompt_cache(self._model)
        if not self._is_quantized:
            return caches
        return quantized(caches, self._plans, self._is_dequantized if is_dequantized is None else is_dequantized)

    def _check_columns(self) -> str | None:
        """Why attention gets dequantized copies in every step, where it does."""
        if not self._is_quantized:
            return None
        attention.install()
        try:
            reason = check_columns(
                self._model, lambda: self._make_caches(False), lambda: self._make_caches(True), self._vocab_size
            )
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
            what = f"{type(error).__name__}: {str(error)[:200]}"
            raise ModelLoadError(
                f"kv_cache.bits: this model's code does not take a quantized KV cache ({what}); leave it unset"
            ) from error
        self._is_dequantized = reason is not None
        return reason

    def _read_embedding(self, checkpoint: Checkpoint, dim: int) -> str:
        """Why the model makes no embeddings; empty where it does."""
        pooling = read_pooling(checkpoint)
        if isinstance(pooling, str):
            return pooling
        reason = vectors.check_hidden(self._model, self._make_caches, dim)
        if reason is None:
            self._embedding = EmbeddingInfo(dim=dim, pooling=pooling.place, is_normalized=pooling.is_normalized)
        return reason or ""

    # ---- prefill ----

    def prefill(self, chunk: Chunk) -> None:
        prefill = chunk.prefill
        num_top = prefill.num_top_logprobs
        try:
            if prefill.state is None:
                prefill.state = self._make_caches()
            if self._embedding is not None and prefill.request.embeds:
                vectors.compute(self._model, chunk, self._embedding)
            elif num_top is None:
                self._compute(prefill.token_ids(chunk.start, chunk.start + chunk.num_tokens), prefill.state)
            else:
                self._compute_noting(chunk, num_top)
        except (RuntimeError, ValueError, TypeError, IndexError, MemoryError) as error:
            prefill.state = None
            raise failed("prefill", error, prefill.sequences) from error

    def _compute(self, tokens: tuple[int, ...], caches: list[Any]) -> None:
        """A chunk into its caches. Only they are evaluated: its logits are never computed."""
        self._model(mx.array(tokens)[None], cache=caches)
        mx.eval([cache.state for cache in caches])
        mx.clear_cache()

    def _compute_noting(self, chunk: Chunk, num_top: int) -> None:
        """A chunk into its caches, in pieces, and of each the log-probabilities of the tokens that follow."""
        prefill, stop = chunk.prefill, chunk.start + chunk.num_tokens
        piece = max(1, _LOGITS_BYTES // (4 * self._vocab_size))
        for start in range(chunk.start, stop, piece):
            end = min(start + piece, stop)
            logits = self._model(mx.array(prefill.token_ids(start, end))[None], cache=prefill.state)[0]
            following = mx.array(prefill.token_ids(start + 1, end + 1))
            ranked = rank(logits.astype(mx.float32), following, num_top)
            mx.eval(*ranked, [cache.state for cache in prefill.state])
            prefill.logprobs += read_prompt(ranked)
        mx.clear_cache()

    # ---- decode ----

    def start(self, sequences: collections.abc.Sequence[Sequence]) -> Step:
        try:
            drawn, failures = self._start(sequences)
        except (RuntimeError, ValueError, TypeError, IndexError, MemoryError) as error:
            self.idle()
            raise failed("decode", error, sequences) from error
        rows = list(self._batch.rows)
        for sequence in rows:
            sequence.num_started_tokens += 1
        self._num_steps += 1
        if self._num_steps % _CLEAR_EVERY_STEPS == 0:
            mx.clear_cache()
        return Step(tuple(rows), _InFlight(drawn, rows), tuple(failures))

    def _start(self, sequences: collections.abc.Sequence[Sequence]) -> tuple[Drawn, list[GrammarFailed]]:
        previous = list(self._batch.rows)
        if len(previous) != len(sequences) or set(previous) != set(sequences):
            self._batch.set_rows(sequences)
            self._sampler.set_rows(self._batch.rows, self._vocab_size)
            self._release(sequences)
        inputs = self._inputs(previous)
        logits = self._model(inputs[:, None], cache=self._batch.caches)[:, -1]
        self._batch.advance()
        masks = self._read_masks(previous, logits)
        drawn = self._sampler.draw(logits, masks.bits)
        mx.async_eval(drawn.arrays)
        self._last_tokens = drawn.tokens
        return drawn, masks.failures

    def _read_masks(self, previous: list[Sequence], logits: mx.array) -> Masks:
        """What rows with a grammar may draw. Waits for the step before, while the device computes this one's logits."""
        rows = self._batch.rows
        if not any(map(needs_mask, rows)):
            return Masks()
        mx.async_eval(logits)
        in_flight = {} if self._last_tokens is None else dict(zip(previous, self._last_tokens.tolist(), strict=True))
        newest = [in_flight.get(row) if row.num_started_tokens > len(row.output_ids) else None for row in rows]
        return read_masks(rows, newest)

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
            self.idle()
            raise failed("decode", error, step.sequences) from error
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

    def device_bytes(self) -> tuple[int, int]:
        return mx.get_active_memory(), mx.get_peak_memory()

    def interrupt(self) -> None:
        """Nothing here only waits."""

    def close(self) -> None:
        for name in ("_model", "_batch", "_sampler", "_last_tokens", "prefix_store"):
            self.__dict__.pop(name, None)
        device.release(self)
        # Without it the thread's streams are torn down while the process exits, which aborts it now and then.
        mx.clear_streams()


def _too_large(memory: MemoryReport, checkpoint: Checkpoint) -> str:
    raising = "" if memory.raise_command is None else f"; more is there for the GPU after: {memory.raise_command}"
    return (
        f"{checkpoint.path.name} does not fit: its weights take {memory.weights_bytes / 1e9:.2f} GB, of "
        f"{memory.limit_bytes / 1e9:.2f} GB ({memory.limit_basis}) less {memory.reserve_bytes / 1e9:.2f} GB of "
        f"reserve, and what is left does not hold one token's computation{raising}; see: pippin plan {checkpoint.path}"
    )
