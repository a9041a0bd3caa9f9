"""The MLX runner: chunks into single caches, decode steps over a batch of rows.

Everything here runs on the device thread: MLX streams belong to a thread. A step is built and handed to
the device without waiting; reading its tokens, a step later, is the only wait.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache

from mlx_backend.api.interface import NO_SPECULATION, EmbeddingInfo, EngineConfig, LoadProgress, ModelInfo
from mlx_backend.core.row import Row
from mlx_backend.core.step import (
    Chunk,
    Draft,
    DraftRequest,
    PromptId,
    PromptResult,
    ReadMasks,
    SequenceId,
    StepPlan,
    StepResult,
)
from mlx_backend.kv_cache import attention, plan, spec
from mlx_backend.kv_cache.batch import RowBatch, SingleBatch
from mlx_backend.kv_cache.build import quantized
from mlx_backend.kv_cache.grouping import MAX_GROUPS
from mlx_backend.kv_cache.plan import CachePlan, RowSizes
from mlx_backend.model.checkpoint import Checkpoint, open_checkpoint
from mlx_backend.model.loader import build_model, count_parameters, read_weights
from mlx_backend.model.skeleton import Skeleton, read_model
from mlx_backend.planning.admission import Budget
from mlx_backend.planning.chunk_sizes import padded
from mlx_backend.planning.memory import ModelShape
from mlx_backend.prefix_cache.store_mlx import MLXStore
from mlx_backend.runners import device, division, ranking, shapes, vectors
from mlx_backend.runners.adapters import Adapters, open_adapters, with_adapters
from mlx_backend.runners.base import failed, limited_by
from mlx_backend.runners.decoding import Decoding
from mlx_backend.runners.draft_loading import PlannedDraft, plan_draft, summed, with_draft
from mlx_backend.runners.draft_model import DraftModel
from mlx_backend.runners.probe import check_batching, check_columns, check_drafts, check_groups, defer_latents
from mlx_backend.runners.wired import WiredWeights
from mlx_backend.sampling.sampler import BatchSampler

logger = logging.getLogger("pippin.mlx")

_CLEAR_EVERY_STEPS = 256
"""Freed buffers are kept for reuse, by size; as contexts grow the sizes stop fitting. mlx-lm clears as often."""


@dataclass(slots=True)
class _Prompt:
    """A prompt that is being computed, or that sequences will continue."""

    caches: list[Any]
    pooled: mx.array | None = None
    """State of the prompt's vector for the tokens that are computed."""


class MLXRunner:
    """Implements `runners.base.Runner` over a model of mlx-lm."""

    budget: Budget | None = None
    blocks: MLXStore | None = None

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._num_steps = 0
        self._rows: dict[SequenceId, Row] = {}
        self._prompts: dict[PromptId, _Prompt] = {}
        self._plans: tuple[CachePlan, ...] = ()
        self._whole_heads_reason: str | None = None
        self._is_dequantized = False
        self._max_groups = 1
        self._embedding: EmbeddingInfo | None = None
        self._wired = WiredWeights()
        self.adapters = Adapters()
        self._planned_draft: PlannedDraft | None = None
        self._draft_model: DraftModel | None = None

    # ---- loading ----

    def load(self, report: Callable[[LoadProgress], None]) -> ModelInfo:
        checkpoint = open_checkpoint(Path(self._config.model_path))
        for note in checkpoint.notes:
            logger.warning("%s: %s", checkpoint.path.name, note)
        limit = division.read_context_limit(checkpoint, self._config)
        adapters = open_adapters(self._config)
        self._planned_draft = draft = plan_draft(self._config, checkpoint)
        self._model, skeleton = self._build(checkpoint)
        skeleton = with_draft(with_adapters(skeleton, adapters), draft)
        self._vocab_size = skeleton.shape.vocab_size
        self._plans = plan.plan_caches(skeleton.caches, self._config.kv_cache, self._config.speculation.max_drafts)
        needs_warm_shapes = device.needs_warm_shapes()
        self._pads_chunks = needs_warm_shapes and shapes.can_pad(self._plans)
        memory, limits = division.divide_memory(self._config, skeleton.shape, checkpoint.path.name, self._wired)
        if memory is not None:
            self.budget = self._build_budget(skeleton.shape, memory.free_bytes)
        fitting = division.fitting(limit, self.budget)
        if fitting == 0 and memory is not None:
            raise division.too_large(memory, checkpoint) if draft is None else draft.too_large(memory, checkpoint)
        if limits is not None:
            device.apply_limits(limits, self)
        total, of_draft = skeleton.shape.weights_bytes, 0 if draft is None else draft.weights_bytes
        read_weights(self._model, checkpoint, summed(report, 0, total))
        if self._defer_latents(skeleton.shape):
            fitting = division.fitting(limit, self.budget)
        dequantized_reason = self._check_columns()
        reason = spec.unbatched_reason(make_prompt_cache(self._model))
        if reason is None:
            self.blocks = MLXStore(self._plans, self._caches_of, lambda: self._batch)
            reason = check_batching(self._model, self._make_caches, self._vocab_size)
        reason = reason or self._wired.plan.single_reason
        self._is_batched = reason is None
        ungrouped_reason = self._check_groups() if self._is_batched else None
        no_drafts_reason = self._check_drafts(reason or ungrouped_reason)
        if draft is not None:
            report_draft = summed(report, total - of_draft, total)
            self._draft_model = draft.load(report_draft, self._vocab_size, no_drafts_reason)
        made = vectors.read_vectors(self._model, self._make_caches, checkpoint, skeleton.shape.hidden_size)
        self._embedding = made.computed
        self._context = fitting
        if needs_warm_shapes:
            self._warming().run(report, skeleton.shape.weights_bytes)
        held = self.adapters.load(self._model, adapters, self._make_caches, is_batched=self._is_batched)
        self._reset()
        if memory is not None:
            wiring = self._wired.wire(len(tree_flatten(self._model.parameters())))
            memory = replace(memory, wired_bytes=wiring.wired_bytes, wired_reason=wiring.reason)
        return ModelInfo(
            context_limit=fitting,
            context_limited_by=limited_by(self._config.context, limit, fitting),
            vocab_size=self._vocab_size,
            num_parameters=count_parameters(self._model),
            weights_bytes=skeleton.shape.weights_bytes,
            memory=memory,
            is_batched=self._is_batched,
            unbatched_reason=reason,
            ungrouped_reason=ungrouped_reason,
            kv_caches=plan.report(self._plans, self._config.kv_cache),
            dequantized_reason=dequantized_reason,
            whole_heads_reason=self._whole_heads_reason,
            pads_chunks=self._pads_chunks,
            max_drafts=self._config.speculation.max_drafts if no_drafts_reason is None else 0,
            no_drafts_reason=no_drafts_reason or "",
            draft_model=None if draft is None else draft.info(),
            adapters=held,
            **made.report,
        )

    def _defer_latents(self, shape: ModelShape) -> bool:
        """Let attention over latents run in groups of heads. Returns True if it cannot and memory is replanned."""
        if shape.attention is None or not shape.attention.is_latent:
            return False
        planned = shape.attention.is_grouped
        make = partial(make_prompt_cache, self._model)
        self._whole_heads_reason = defer_latents(self._model, make, self._vocab_size, planned)
        if self._whole_heads_reason is None or not planned:
            return False
        if self.budget is not None:
            whole = replace(shape, attention=replace(shape.attention, is_grouped=False))
            self.budget = self._build_budget(whole, self.budget.limit_bytes)
        return True

    def _build(self, checkpoint: Checkpoint) -> tuple[Any, Skeleton]:
        """Return the model, before its weights are read, and its shape."""
        model = build_model(checkpoint)
        return model, read_model(model, checkpoint.config)

    def _make_sampler(self) -> BatchSampler:
        return BatchSampler()

    def _build_budget(self, shape: ModelShape, free_bytes: int) -> Budget:
        build = Budget if self._planned_draft is None else self._planned_draft.budget
        return build(
            shape,
            self._plans,
            free_bytes,
            max_chunk=self._config.scheduler.max_chunk_tokens,
            has_fused=device.has_fused_attention(),
            pads_chunks=self._pads_chunks,
            max_drafts=self._config.speculation.max_drafts,
        )

    def _warming(self) -> shapes.Warming:
        scheduler = self._config.scheduler
        return shapes.Warming(
            self._model,
            self._make_caches,
            self._make_batch,
            self._vocab_size,
            max_chunk=scheduler.max_chunk_tokens,
            max_rows=scheduler.max_num_seqs if self._is_batched else 1,
            context=self._context,
            budget=self.budget,
        )

    @property
    def _is_quantized(self) -> bool:
        return any(each.is_quantized for each in self._plans)

    def _make_caches(self, is_dequantized: bool | None = None) -> list[Any]:
        caches: list[Any] = make_prompt_cache(self._model)
        if not self._is_quantized:
            return caches
        return quantized(caches, self._plans, self._is_dequantized if is_dequantized is None else is_dequantized)

    def _check_columns(self) -> str | None:
        """Return why attention gets dequantized copies in every step; None if it does not."""
        if not self._is_quantized:
            return None
        attention.install()
        make = (partial(self._make_caches, False), partial(self._make_caches, True))
        reason = check_columns(self._model, *make, self._vocab_size)
        self._is_dequantized = reason is not None
        return reason

    def _check_groups(self) -> str | None:
        """Return why all rows are padded to the longest; None if they are not."""
        attention.install()
        reason = check_groups(self._model, self._make_caches, self._vocab_size, self._kinds)
        self._max_groups = MAX_GROUPS if reason is None else 1
        if self.budget is not None:
            self.budget.max_groups = self._max_groups
        return reason

    def _check_drafts(self, reason: str | None) -> str | None:
        """Return why a step verifies no drafts; None if it does. `reason`: why rows are not batched in groups."""
        if not self._config.speculation.max_drafts or reason is not None:
            return reason if self._config.speculation.max_drafts else NO_SPECULATION
        return check_drafts(self._model, self._make_caches, self._vocab_size, self._kinds)

    # ---- prefill ----

    def prefill(self, chunk: Chunk) -> PromptResult:
        try:
            return self._prefill(chunk)
        except (RuntimeError, ValueError, TypeError, IndexError, MemoryError, KeyError) as error:
            self._prompts.pop(chunk.prompt, None)
            raise failed("prefill" if chunk.restore is None else "restore", error) from error

    def _prefill(self, chunk: Chunk) -> PromptResult:
        prompt = self._prompts.get(chunk.prompt)
        if prompt is None:
            prompt = self._prompts[chunk.prompt] = _Prompt(self._make_caches())
        self.adapters.choose([chunk.adapter])
        if chunk.restore is not None:
            assert self.blocks is not None, "what is restored was kept before"
            self.blocks.restore(chunk, chunk.restore, prompt.caches)
        elif self._embedding is not None and chunk.embeds:
            prompt.pooled, vector = vectors.compute(self._model, chunk, prompt.caches, prompt.pooled, self._embedding)
            return PromptResult(embedding=vector)
        elif chunk.num_top_logprobs is not None:
            return PromptResult(
                ranking.compute(self._model, chunk, prompt.caches, chunk.num_top_logprobs, self._vocab_size)
            )
        else:
            self._compute(chunk, prompt.caches)
        return PromptResult()

    def _caches_of(self, prompt: PromptId) -> list[Any] | None:
        held = self._prompts.get(prompt)
        return None if held is None else held.caches

    def _compute(self, chunk: Chunk, caches: list[Any]) -> None:
        """Compute a chunk into its caches. Only they are evaluated: its logits are never computed."""
        if self._pads_chunks:
            most = min(self._config.scheduler.max_chunk_tokens, self._context - chunk.start)
            size = padded(chunk.num_tokens, most)
            shapes.compute_padded(self._model, chunk.token_ids, size, chunk.stop, caches, self._plans)
        else:
            self._model(mx.array(chunk.token_ids)[None], cache=caches)
        # This waits: the chunk's time is measured, and a further chunk would need its memory beside this one's. Spare
        # buffers stay, within the limit set for MLX: the next chunk is often of the same size.
        mx.eval([cache.state for cache in caches])

    # ---- decode ----

    def start(self, plan: StepPlan, read_masks: ReadMasks) -> None:
        for sequence_id in plan.ended:
            self._rows.pop(sequence_id, None)  # it leaves the batch when the next step starts, or when all do
        if plan.ended and self._draft_model is not None:
            self._draft_model.leave(plan.ended)
        for new in plan.new_rows:
            self._rows[new.id] = Row.of(new, self._caches_of(new.prompt), is_last=new.prompt in plan.dropped)
        in_flight = list(self._decoding.in_flight)
        try:
            if plan.decodes:
                self._start([self._rows[each] for each in plan.decodes], plan, read_masks)
        except (RuntimeError, ValueError, TypeError, IndexError, MemoryError) as error:
            self._lose_rows()
            self._decoding.in_flight.extend(in_flight)  # the step before may be intact, and is still to be read
            raise failed("decode", error) from error
        finally:
            self._drop(plan.dropped)

    def _drop(self, prompts: tuple[PromptId, ...]) -> None:
        for prompt in prompts:
            self._prompts.pop(prompt, None)

    def _start(self, rows: list[Row], plan: StepPlan, read_masks: ReadMasks) -> None:
        self._decoding.start(rows, plan, read_masks, lambda: self._drop(plan.dropped))
        self._num_steps += 1
        if self._num_steps % _CLEAR_EVERY_STEPS == 0:
            mx.clear_cache()

    def collect(self) -> StepResult:
        try:
            return self._decoding.collect()
        except (RuntimeError, ValueError, MemoryError) as error:
            self.idle()
            raise failed("decode", error) from error

    def draft(self, wanted: tuple[DraftRequest, ...]) -> tuple[Draft, ...]:
        if self._draft_model is None:
            return ()
        try:
            return self._draft_model.draft(wanted, self._rows)
        except (RuntimeError, ValueError, TypeError, IndexError, MemoryError, KeyError) as error:
            self._draft_model.reset()
            raise failed("draft", error) from error

    # ---- between ----

    def _reset(self) -> None:
        if self._draft_model is not None:
            self._draft_model.reset()
        self._decoding = Decoding(self._model, self._make_batch(), self._make_sampler, self._vocab_size, self._choose)
        self._rows = {}

    def _choose(self, adapters: Sequence[str]) -> None:
        """Set the adapter of each row of the next pass; they may have changed since the batch was made."""
        self.adapters.choose(adapters)

    @property
    def _batch(self) -> RowBatch | SingleBatch:
        return self._decoding.batch

    @property
    def _kinds(self) -> list[spec.CacheKind]:
        return [each.shape.traits for each in self._plans]

    def _make_batch(self) -> RowBatch | SingleBatch:
        if not self._is_batched:
            return SingleBatch(self._make_caches)
        drafts = self._config.speculation.max_drafts
        return RowBatch(self._make_caches(), self._row_sizes(), self._max_groups, self._kinds, drafts)

    def _row_sizes(self) -> RowSizes:
        return RowSizes(self._plans)

    def _lose_rows(self) -> None:
        self._reset()
        mx.clear_cache()  # nothing decodes: spare memory goes back to the system

    def idle(self) -> None:
        self._lose_rows()

    def kv_bytes(self) -> int:
        single = (cache for prompt in self._prompts.values() for cache in prompt.caches)
        drafting = 0 if self._draft_model is None else self._draft_model.nbytes
        return drafting + int(self._batch.nbytes) + sum(int(cache.nbytes) for cache in single if not cache.empty())

    def device_bytes(self) -> tuple[int, int]:
        return mx.get_active_memory(), mx.get_peak_memory()

    def interrupt(self) -> None:
        """Do nothing: nothing here only waits."""

    def close(self) -> None:
        self._wired.unwire()
        for name in ("_model", "_decoding", "_rows", "_prompts", "blocks", "_draft_model", "_planned_draft"):
            self.__dict__.pop(name, None)
        self.adapters = Adapters()
        device.release(self)
        # Otherwise the thread's streams are torn down while the process exits, which occasionally aborts it.
        mx.clear_streams()
