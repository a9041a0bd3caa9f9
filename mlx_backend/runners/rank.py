"""The MLX runner of one rank: it holds its share of the model, and all ranks draw the same tokens.

Every call must be made on all ranks, in the same order: a forward pass, and sharing the tokens, are collectives.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import mlx.core as mx

from mlx_backend.api.interface import EngineConfig, LoadProgress, ModelInfo
from mlx_backend.core.membership import Membership
from mlx_backend.kv_cache.plan import CacheShape, RowSizes, plan_caches
from mlx_backend.model import sharding
from mlx_backend.model.checkpoint import Checkpoint
from mlx_backend.model.loader import build_model, count_parameters
from mlx_backend.model.skeleton import Skeleton, read_model
from mlx_backend.runners.mlx import MLXRunner
from mlx_backend.sampling.sampler import BatchSampler
from mlx_backend.sampling.shared import FollowingSampler, LeadingSampler

logger = logging.getLogger("pippin.mlx")


class RankRunner(MLXRunner):
    """Implements `runners.base.Runner` over a rank's share of a model."""

    _group: mx.distributed.Group

    def __init__(self, config: EngineConfig, membership: Membership) -> None:
        super().__init__(config)
        self._membership = membership
        self._num_parameters = 0
        """Parameters of the whole model, as reported to users."""
        self._whole: Sequence[CacheShape] = ()
        """Caches of all ranks of a pipeline."""

    def load(self, report: Callable[[LoadProgress], None]) -> ModelInfo:
        """Join the group and load the share. Raises ModelLoadError."""
        self._group = sharding.join(self._membership)
        mx.reset_peak_memory()
        peak_bytes = 0

        def noting(progress: LoadProgress) -> None:
            nonlocal peak_bytes
            if progress.num_to_warm == 0:
                peak_bytes = mx.get_peak_memory()
            report(progress)

        info = replace(super().load(noting), num_parameters=self._num_parameters)
        rank, weights = self._membership.rank, info.weights_bytes
        logger.info("rank %d holds %.1f MB of weights, read within %.1f MB", rank, weights / 1e6, peak_bytes / 1e6)
        return info

    def _build(self, checkpoint: Checkpoint) -> tuple[Any, Skeleton]:
        model = build_model(checkpoint)
        self._num_parameters = count_parameters(model)
        if self._membership.parallel == "pipeline":
            self._whole = read_model(model, checkpoint.config).caches
        sharding.split(model, checkpoint.config, self._group, self._membership)
        return model, read_model(model, sharding.local_config(checkpoint.config, self._membership))

    def _row_sizes(self) -> RowSizes:
        """Return the sizes that all ranks share: they order the batch's rows, and so the exchanged activations.

        The ranks of a pipeline may have different numbers of layers. So each of them counts the bytes of all layers.
        """
        return self._whole_sizes() if self._whole else super()._row_sizes()

    def _whole_sizes(self) -> RowSizes:
        return RowSizes(plan_caches(self._whole, self._config.kv_cache, self._config.speculation.max_drafts))

    def _make_sampler(self) -> BatchSampler:
        return LeadingSampler(self._group) if self._membership.rank == 0 else FollowingSampler(self._group)
