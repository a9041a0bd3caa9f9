"""Estimate of the device memory that a model folder takes: built lazily, and never computed."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mlx.core as mx

from mlx_backend.api.interface import EngineConfig, Footprint
from mlx_backend.kv_cache import plan
from mlx_backend.model import skeleton
from mlx_backend.model.checkpoint import open_checkpoint
from mlx_backend.planning import footprint
from mlx_backend.planning.admission import Budget
from mlx_backend.runners import device
from mlx_backend.runners.adapters import open_adapters, with_adapters
from mlx_backend.runners.draft_loading import plan_draft, with_draft


def estimate_footprint(config: EngineConfig) -> Footprint:
    """Estimate the footprint of the model that `config` names, held as it says. Raises ModelLoadError."""
    with ThreadPoolExecutor(1) as thread:  # MLX keeps streams by thread: they end with this one
        return thread.submit(_measure, config).result()


def _measure(config: EngineConfig) -> Footprint:
    checkpoint = open_checkpoint(Path(config.model_path))
    context = config.context.limit or checkpoint.context_length
    limit = config.memory.limit_bytes
    if limit is None:
        limit, _ = device.memory_limit(device.read_facts())
    try:
        draft = plan_draft(config, checkpoint)
        found = with_draft(with_adapters(skeleton.from_checkpoint(checkpoint), open_adapters(config)), draft)
        drafts = config.speculation.max_drafts
        plans = plan.plan_caches(found.caches, config.kv_cache, drafts)
        chunk, has_fused = config.scheduler.max_chunk_tokens, device.has_fused_attention()
        build = Budget if draft is None else draft.budget
        budget = build(found.shape, plans, 0, max_chunk=chunk, has_fused=has_fused, max_drafts=drafts)
        return footprint.estimate_footprint(budget, context, config.memory, limit)
    finally:
        mx.clear_streams()  # otherwise they are torn down as the process exits, which occasionally aborts it
