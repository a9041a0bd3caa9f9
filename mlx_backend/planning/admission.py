"""Admission by bytes: the memory that requests take together, from the reservation of each. Pure; no MLX, no clock.

A reservation counts its rows with their tokens, as rows of a batch in groups by length; its prompt's own cache until it
joins; and a prefill chunk of the smallest step, of which only the largest counts. The caller chooses the number of
tokens: the worst case (all of max_tokens), the expected length, or the need of the next steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mlx_backend.kv_cache.grouping import most_bytes
from mlx_backend.kv_cache.plan import CachePlan, RowSizes, max_groups
from mlx_backend.planning.chunk_sizes import most_padding, round_down
from mlx_backend.planning.memory import PREFILL_STEPS, ModelShape, decode_bytes, kv_bytes, prefill_bytes

SMALLEST_STEP = PREFILL_STEPS[-1]
"""Lower bound of a prefill chunk that is shrunk to fit: with smaller ones, a long prompt would take forever."""

_MOST_KNOWN = 16


@dataclass(frozen=True, slots=True)
class Reservation:
    """Reservation of one request. `is_prefilled`: its prompt's own cache is gone."""

    num_rows: int
    num_prompt_tokens: int
    num_tokens: int
    """Prompt and output of each row."""
    is_prefilled: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetFields:
    """All inputs of a budget, from which another process can build the same one."""

    shape: ModelShape
    plans: tuple[CachePlan, ...]
    limit_bytes: int
    max_chunk: int
    has_fused: bool
    pads_chunks: bool
    max_groups: int
    max_drafts: int


class Budget:
    """Memory budget. `limit_bytes` are for KV caches and transient memory, without weights and reserve."""

    def __init__(
        self,
        shape: ModelShape,
        plans: Sequence[CachePlan],
        limit_bytes: int,
        *,
        max_chunk: int = PREFILL_STEPS[0],
        has_fused: bool = True,
        pads_chunks: bool = False,
        max_drafts: int = 0,
    ) -> None:
        """`max_chunk`: most tokens of a prefill chunk. `has_fused`: the device has fused attention kernels.

        `pads_chunks`: a prompt's last chunk is computed with more tokens, and its caches have room for their columns.
        `max_drafts`: tokens per row that a decode step may verify beside its newest one.
        """
        self.shape, self.plans, self.limit_bytes = shape, tuple(plans), limit_bytes
        self._max_chunk, self._has_fused = max_chunk, has_fused
        self.max_groups = max_groups(plans)
        """Groups of rows in the batch, by length; a model's self-check may set it to 1."""
        self.row_bytes = RowSizes(plans)
        self._max_drafts = max_drafts
        self._padding = most_padding(max_chunk) if pads_chunks else 0
        self._known: dict[tuple[Reservation, ...], tuple[int, int]] = {}
        """Held and needed bytes by claims: read in every turn, and rarely different."""

    @classmethod
    def of(cls, fields: BudgetFields) -> Budget:
        """Return the budget with these `fields`."""
        found = cls(
            fields.shape,
            fields.plans,
            fields.limit_bytes,
            max_chunk=fields.max_chunk,
            has_fused=fields.has_fused,
            pads_chunks=fields.pads_chunks,
            max_drafts=fields.max_drafts,
        )
        found.max_groups = fields.max_groups
        return found

    def fields(self) -> BudgetFields:
        """Return all inputs of this budget."""
        return BudgetFields(
            shape=self.shape,
            plans=self.plans,
            limit_bytes=self.limit_bytes,
            max_chunk=self._max_chunk,
            has_fused=self._has_fused,
            pads_chunks=self._padding > 0,
            max_groups=self.max_groups,
            max_drafts=self._max_drafts,
        )

    def needed(self, claims: Iterable[Reservation]) -> int:
        """Return the most bytes that these requests take together, in any order of computation."""
        return self._bytes_of(tuple(claims))[1]

    def held(self, claims: Iterable[Reservation]) -> int:
        """Return the most bytes of their KV caches: the batch, and prompts that are computed or wait for a row."""
        return self._bytes_of(tuple(claims))[0]

    def needed_soon(self, claims: Iterable[Reservation], chunks: Iterable[tuple[int, int]]) -> int:
        """Return `needed` for a turn with these chunks: (tokens, position of its end) of each."""
        largest = max((self._chunk(num_tokens, end) for num_tokens, end in chunks), default=0)
        held, needed = self._bytes_of(tuple(claims))
        return max(needed, held + largest)

    def _bytes_of(self, claims: tuple[Reservation, ...]) -> tuple[int, int]:
        found = self._known.get(claims)  # read once and written once: threads that submit requests call this, too
        if found is None:
            held = self._held(claims)
            found = (held, held + self._transient(claims, SMALLEST_STEP))
            if len(self._known) >= _MOST_KNOWN:
                self._known = {}
            self._known[claims] = found
        return found

    def _held(self, claims: Sequence[Reservation]) -> int:
        computed = (claim for claim in claims if not claim.is_prefilled)
        lengths = (claim.num_prompt_tokens + self._padding for claim in computed)
        alone = sum(kv_bytes(self.plans, length, chunk=self._max_chunk) for length in lengths)
        return self.batch_bytes([claim.num_tokens for claim in claims for _ in range(claim.num_rows)]) + alone

    def batch_bytes(self, lengths: Sequence[int]) -> int:
        """Return the most bytes of the KV caches of rows with, or growing to, these numbers of tokens."""
        return most_bytes(lengths, self.row_bytes, self.max_groups)

    def admits(self, claims: Iterable[Reservation]) -> bool:
        """Return whether all of these may run together."""
        return self.needed(claims) <= self.limit_bytes

    def step_for(self, claims: Sequence[Reservation], context: int, largest: int) -> int:
        """Return the most tokens, up to `largest`, of a chunk ending at `context` that fits beside the held memory."""
        room = self.limit_bytes - self.held(claims)
        step = largest
        while step > SMALLEST_STEP and self._chunk(step, context) > room:
            step = max(SMALLEST_STEP, round_down(step - 1))
        return step

    def largest_alone(self, num_rows: int) -> int:
        """Return the most tokens (prompt and output) of one request with this many rows; 0 if none fit."""
        low, high = 0, self.shape.context_length
        while low < high:
            middle = (low + high + 1) // 2
            fits = self.admits([Reservation(num_rows, middle, middle)])
            low, high = (middle, high) if fits else (low, middle - 1)
        return low

    def _transient(self, claims: Sequence[Reservation], step: int) -> int:
        if not claims:
            return 0
        longest_prompt = max(claim.num_prompt_tokens for claim in claims)
        longest = max(claim.num_tokens for claim in claims)
        rows = sum(claim.num_rows for claim in claims)
        held = self.batch_bytes([claim.num_tokens for claim in claims for _ in range(claim.num_rows)])
        decode = decode_bytes(self.shape, self.plans, longest, rows, held, self._max_drafts)
        return max(self._chunk(step, longest_prompt), decode)

    def _chunk(self, step: int, context: int) -> int:
        return prefill_bytes(self.shape, self.plans, step, context, has_fused=self._has_fused)
