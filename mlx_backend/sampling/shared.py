"""Samplers of a group of ranks: rank 0 draws, and the others receive its tokens, on the device.

The tokens are shared by a collective in the step's graph, so the next step can be built and started before the host has
read them. On the other ranks it depends on the logits, so that all ranks reach it in the same order: after the
collectives of the forward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import mlx.core as mx

from mlx_backend.core.row import Row
from mlx_backend.sampling.continued import Sources
from mlx_backend.sampling.sampler import BatchSampler, Drawn


class LeadingSampler(BatchSampler):
    """Sampler of rank 0: draws, and sends the tokens."""

    def __init__(self, group: mx.distributed.Group) -> None:
        super().__init__()
        self._group = group

    def draw(self, logits: mx.array, grammar: Sequence[tuple[int, bytes]] = ()) -> Drawn:
        drawn = super().draw(logits, grammar)
        return replace(drawn, tokens=mx.distributed.all_sum(drawn.tokens.astype(mx.int32), group=self._group))


class FollowingSampler(BatchSampler):
    """Sampler of another rank: has no parameters, and adds nothing to rank 0's tokens."""

    def __init__(self, group: mx.distributed.Group) -> None:
        super().__init__()
        self._group = group

    def set_rows(self, rows: Sequence[Row], vocab_size: int) -> None:
        """Do nothing: the rows are not needed."""

    def go_on_from(self, other: BatchSampler, sources: Sources, vocab_size: int) -> None:
        """Do nothing: the rows are not needed."""

    def draw(self, logits: mx.array, grammar: Sequence[tuple[int, bytes]] = ()) -> Drawn:
        nothing = mx.zeros((logits.shape[0],), dtype=mx.int32)
        after = mx.depends(nothing, logits)
        return Drawn(mx.distributed.all_sum(after, group=self._group), None, ())
