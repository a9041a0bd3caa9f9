"""The budget of a model with a draft model beside it, whose rows take memory, too. Pure; no MLX."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlx_backend.kv_cache.allocation import DRAFT_CHUNK_TOKENS
from mlx_backend.kv_cache.grouping import most_bytes
from mlx_backend.kv_cache.plan import CachePlan, RowSizes, max_groups
from mlx_backend.planning.admission import Budget, Reservation
from mlx_backend.planning.memory import ModelShape, decode_bytes, kv_bytes, prefill_bytes


class DraftBudget(Budget):
    """Counts, for every row, one of the draft model's; and what that computes with, where it is more."""

    def __init__(
        self,
        shape: ModelShape,
        plans: Sequence[CachePlan],
        limit_bytes: int,
        *,
        draft_shape: ModelShape,
        draft_plans: Sequence[CachePlan],
        **options: Any,
    ) -> None:
        """`options`: see Budget."""
        super().__init__(shape, plans, limit_bytes, **options)
        self._draft_shape, self._draft_plans = draft_shape, tuple(draft_plans)
        self._draft_row_bytes = RowSizes(draft_plans)
        self._draft_groups = max_groups(draft_plans)

    def _held(self, claims: Sequence[Reservation]) -> int:
        return super()._held(claims) + self._drafting_bytes(self._lengths(claims))

    def _transient(self, claims: Sequence[Reservation], step: int) -> int:
        """Return the transient bytes of either model's step: they are computed one after the other."""
        own, lengths = super()._transient(claims, step), self._lengths(claims)
        if not lengths:
            return own
        shape, plans, longest = self._draft_shape, self._draft_plans, max(lengths)
        chunk = prefill_bytes(shape, plans, min(DRAFT_CHUNK_TOKENS, longest), longest, has_fused=self._has_fused)
        joining = kv_bytes(plans, longest, chunk=DRAFT_CHUNK_TOKENS)  # a row's own caches, and its place in the batch
        held = self._drafting_bytes(lengths)
        decode = decode_bytes(shape, plans, longest, len(lengths), held, self._max_drafts)
        return max(own, joining + max(chunk, decode))

    def _lengths(self, claims: Sequence[Reservation]) -> list[int]:
        """Tokens of every row that the draft model can hold."""
        most = self._draft_shape.context_length
        return [min(claim.num_tokens, most) for claim in claims for _ in range(claim.num_rows)]

    def _drafting_bytes(self, lengths: Sequence[int]) -> int:
        return most_bytes(lengths, self._draft_row_bytes, self._draft_groups)
