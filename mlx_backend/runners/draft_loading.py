"""A draft model beside its target model: built with it, planned in its memory, checked once it is read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mlx_lm.models.cache import make_prompt_cache

from mlx_backend.api.errors import ModelLoadError
from mlx_backend.api.interface import DraftModelInfo, EngineConfig, KVCacheConfig, LoadProgress, MemoryReport
from mlx_backend.kv_cache import attention, spec
from mlx_backend.kv_cache.batch import RowBatch
from mlx_backend.kv_cache.grouping import MAX_GROUPS
from mlx_backend.kv_cache.plan import CachePlan, RowSizes, plan_caches
from mlx_backend.model.checkpoint import Checkpoint
from mlx_backend.model.draft_files import display_name, open_draft
from mlx_backend.model.loader import build_model, count_parameters, read_weights
from mlx_backend.model.skeleton import Skeleton, read_model
from mlx_backend.planning.admission import Budget
from mlx_backend.planning.draft_budget import DraftBudget
from mlx_backend.planning.memory import ModelShape
from mlx_backend.runners.draft_model import MOST_PASS_TOKENS, DraftModel
from mlx_backend.runners.probe import check_batching, check_drafts, check_groups, defer_latents

_KEY = "speculation.draft_model"


@dataclass(frozen=True, slots=True)
class PlannedDraft:
    """A draft model before its weights are read. Its KV caches are in its own precision."""

    checkpoint: Checkpoint
    model: Any
    skeleton: Skeleton
    plans: tuple[CachePlan, ...]

    @property
    def name(self) -> str:
        return display_name(self.checkpoint.path)

    @property
    def weights_bytes(self) -> int:
        return self.skeleton.shape.weights_bytes

    def budget(self, shape: ModelShape, plans: Sequence[CachePlan], limit_bytes: int, **options: Any) -> Budget:
        """Return the budget of the target model; `options`: see Budget."""
        own = self.skeleton.shape
        return DraftBudget(shape, plans, limit_bytes, draft_shape=own, draft_plans=self.plans, **options)

    def too_large(self, memory: MemoryReport, model: Checkpoint) -> ModelLoadError:
        """Return the error for two models that do not fit together."""
        own, both, limit = (each / 1e9 for each in (self.weights_bytes, memory.weights_bytes, memory.limit_bytes))
        return ModelLoadError(
            f"{_KEY}: {self.name} does not fit beside {model.path.name}: their weights take {both:.2f} GB, {own:.2f} "
            f"GB of them its own, of {limit:.2f} GB ({memory.limit_basis}) less {memory.reserve_bytes / 1e9:.2f} GB of "
            "reserve; choose a smaller one"
        )

    def load(self, report: Callable[[LoadProgress], None], vocab_size: int, reason: str | None) -> DraftModel:
        """Read its weights. `reason`: why the target model takes no drafts. Raises ModelLoadError."""
        if reason is not None:
            raise ModelLoadError(f"{_KEY}: the model takes no drafts: {reason}; set speculation.kind to off")
        read_weights(self.model, self.checkpoint, report)
        kinds, size = [each.shape.traits for each in self.plans], self.skeleton.shape.vocab_size
        own = self.skeleton.shape.attention
        if own is not None and own.is_latent:
            defer_latents(self.model, self._make_caches, size, own.is_grouped)
        reason = check_batching(self.model, self._make_caches, size)
        attention.install()
        reason = reason or check_drafts(self.model, self._make_caches, size, kinds)
        if reason is not None:
            raise self._unfit(reason)
        max_groups = 1 if check_groups(self.model, self._make_caches, size, kinds) else MAX_GROUPS
        sizes = RowSizes(self.plans)

        def make_batch() -> RowBatch:
            return RowBatch(self._make_caches(), sizes, max_groups, kinds, MOST_PASS_TOKENS - 1)

        return DraftModel(self.model, self._make_caches, make_batch, vocab_size)

    def check_kinds(self) -> None:
        """Raise ModelLoadError if its caches cannot be batched, or cannot be trimmed."""
        reason = spec.unbatched_reason(self._make_caches())
        if reason is None and any(plan.shape.traits.is_state for plan in self.plans):
            reason = "it has recurrent state, which cannot go back to before a token that is refused"
        if reason is not None:
            raise self._unfit(reason)

    def info(self) -> DraftModelInfo:
        return DraftModelInfo(
            name=self.name,
            context_limit=self.skeleton.shape.context_length,
            num_parameters=count_parameters(self.model),
            weights_bytes=self.weights_bytes,
            kv_bytes_per_token=sum(plan.bytes_per_token for plan in self.plans),
        )

    def _unfit(self, reason: str) -> ModelLoadError:
        return ModelLoadError(f"{_KEY}: {self.name} cannot draft: {reason}; choose another model")

    def _make_caches(self) -> list[Any]:
        caches: list[Any] = make_prompt_cache(self.model)
        return caches


def plan_draft(config: EngineConfig, checkpoint: Checkpoint) -> PlannedDraft | None:
    """Return the draft model of a configuration, beside the model's own `checkpoint`. Raises ModelLoadError."""
    name = config.speculation.draft_model
    if name is None:
        return None
    found = open_draft(name, checkpoint.path)
    model = build_model(found)
    skeleton = read_model(model, found.config)
    planned = PlannedDraft(found, model, skeleton, plan_caches(skeleton.caches, KVCacheConfig(), MOST_PASS_TOKENS - 1))
    planned.check_kinds()
    return planned


def with_draft(skeleton: Skeleton, draft: PlannedDraft | None) -> Skeleton:
    """Return a model's skeleton with the draft model's bytes among those of its weights."""
    if draft is None:
        return skeleton
    shape = replace(skeleton.shape, weights_bytes=skeleton.shape.weights_bytes + draft.weights_bytes)
    return replace(skeleton, shape=shape)


def summed(
    report: Callable[[LoadProgress], None], before_bytes: int, total_bytes: int
) -> Callable[[LoadProgress], None]:
    """Return a report of one of two models' weights as a part of both: `before_bytes` are read already."""
    return lambda progress: report(
        replace(progress, done_bytes=before_bytes + progress.done_bytes, total_bytes=total_bytes)
    )
