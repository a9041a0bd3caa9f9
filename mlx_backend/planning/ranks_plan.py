"""The plan of one model over several equal machines: each rank's part, what fits on all of them, and the speed.

Pure: shapes, a machine, a link and arithmetic in, facts and sentences out. No MLX, no printing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mlx_backend.api.interface import KVCacheConfig
from mlx_backend.kv_cache.plan import CachePlan, CacheShape, plan_caches
from mlx_backend.planning.links import Link, Span, exchange_s, has_thunderbolt_5, slowed
from mlx_backend.planning.machines import Machine, highest_gpu_limit
from mlx_backend.planning.memory import (
    MOST_RESERVE_BYTES,
    PREFILL_STEPS,
    Memory,
    ModelShape,
    largest_context,
    memory_at,
)
from mlx_backend.planning.planner import chats_that_fit, decode_speed, prefill_speed
from mlx_backend.planning.ranks import Message, RankShapes
from mlx_backend.planning.speed import Estimate

COMPARED_TOKENS = 4096
"""Context at which tensor and pipeline are compared."""
_IDS = Message("all_sum", 4)
"""Rank 0 samples; the others receive the tokens from it in every step."""


@dataclass(frozen=True, slots=True)
class RanksRow:
    """Context and speed for this many users together; `memories` by rank, empty if it does not fit on one of them."""

    num_users: int
    memories: tuple[Memory, ...] = ()
    decode: Estimate | None = None
    """Tokens per second of each user, at that context."""
    prefill: Estimate | None = None
    """Tokens per second, over a prompt of that context."""

    @property
    def context(self) -> int | None:
        return self.memories[0].context if self.memories else None

    @property
    def ttft_s(self) -> float | None:
        """Seconds until the first token of a prompt that fills the context."""
        if self.context is None or self.prefill is None:
            return None
        return self.context / self.prefill.value


@dataclass(frozen=True, slots=True)
class RanksPlan:
    """The plan of one model, split in one way over equal machines."""

    whole: ModelShape
    ranks: RankShapes
    machine: Machine
    link: Link
    budget_bytes: int
    """Budget on each machine."""
    reserve_bytes: int
    kv_cache: KVCacheConfig
    caches: tuple[tuple[CachePlan, ...], ...]
    """Plans by rank."""
    rows: tuple[RanksRow, ...]
    num_chats: int
    messages: tuple[Message, ...]
    """Messages of a decode step of one user."""
    messages_s: Span
    compared: Estimate | None
    """Tokens per second of one user at COMPARED_TOKENS; None if that does not fit or is unknown."""
    advice: tuple[str, ...]

    @property
    def fits(self) -> bool:
        return any(row.memories for row in self.rows)

    @property
    def largest_bytes(self) -> int:
        """Weights of the rank that holds most."""
        return max(rank.shape.weights_bytes for rank in self.ranks.ranks)


@dataclass(frozen=True, slots=True)
class Choice:
    """The chosen plan and the reason; `other` is the rejected one."""

    plan: RanksPlan
    reason: str
    other: RanksPlan | None = None


def build_ranks_plan(
    whole: tuple[ModelShape, Sequence[CacheShape]],
    ranks: RankShapes,
    machine: Machine,
    link: Link,
    kv_cache: KVCacheConfig,
    *,
    users: Sequence[int] = (1, 2, 4, 8),
    context: int | None = None,
    budget_bytes: int | None = None,
    reserve_bytes: int = MOST_RESERVE_BYTES,
) -> RanksPlan:
    """`whole`: the model unsplit. Options as in `build_plan`, for each machine.

    Raises ModelLoadError for a KV cache that this model cannot have.
    """
    budget = machine.gpu_limit_bytes if budget_bytes is None else budget_bytes
    group = _Group(whole[0], plan_caches(whole[1], kv_cache), ranks, machine, link, reserve_bytes, kv_cache, context)
    rows = tuple(group.row(num_users, budget) for num_users in users)
    step = (*ranks.messages, _IDS)
    single = next((row for row in rows if row.num_users == 1), None) or group.row(1, budget)
    compared = min(COMPARED_TOKENS, single.context or 0)
    return RanksPlan(
        whole=whole[0],
        ranks=ranks,
        machine=machine,
        link=link,
        budget_bytes=budget,
        reserve_bytes=reserve_bytes,
        kv_cache=kv_cache,
        caches=group.plans,
        rows=rows,
        num_chats=group.num_chats(budget),
        messages=step,
        messages_s=exchange_s(step, ranks.size, link),
        compared=group.decode(compared, 1) if compared else None,
        advice=tuple(_advice(group, rows, budget)),
    )


def choose(tensor: RanksPlan | str, pipeline: RanksPlan | str) -> Choice:
    """Return the better of the two for their link. A text is the reason for a missing plan; at least one must exist."""
    if isinstance(tensor, str) or isinstance(pipeline, str):
        plan, refusal = (pipeline, tensor) if isinstance(tensor, str) else (tensor, pipeline)
        assert isinstance(plan, RanksPlan)
        return Choice(plan, f"{plan.ranks.parallel}: the alternative is not possible: {refusal}")
    if tensor.fits != pipeline.fits:
        plan, other = (tensor, pipeline) if tensor.fits else (pipeline, tensor)
        return Choice(plan, f"{plan.ranks.parallel}: {other.ranks.parallel} does not fit", other)
    if not tensor.fits:
        plan, other = sorted((tensor, pipeline), key=lambda each: each.largest_bytes)
        sizes = f"its largest rank holds {plan.largest_bytes / 1e9:,.1f} GB of weights, {other.ranks.parallel}'s"
        return Choice(plan, f"{plan.ranks.parallel}: neither fits; {sizes} {other.largest_bytes / 1e9:,.1f}", other)
    if tensor.compared is None or pipeline.compared is None:
        is_fast = tensor.link.backend == "jaccl"
        plan, other = (tensor, pipeline) if is_fast else (pipeline, tensor)
        which = f"{len(tensor.messages)} messages per token cost little" if is_fast else "few messages matter most"
        return Choice(plan, f"{plan.ranks.parallel}: over {plan.link.name} {which}; speeds are unknown here", other)
    is_faster = tensor.compared.value > pipeline.compared.value
    plan, other = (tensor, pipeline) if is_faster else (pipeline, tensor)
    assert plan.compared is not None and other.compared is not None
    return Choice(
        plan,
        f"{plan.ranks.parallel}: about {_speed(plan.compared)} tokens per second over {plan.link.name} at "
        f"{COMPARED_TOKENS:,} tokens, {other.ranks.parallel} about {_speed(other.compared)}; messages take "
        f"{1e3 * plan.messages_s.value:.1f} ms and {1e3 * other.messages_s.value:.1f} ms per token",
        other,
    )


def compare_split(plan: RanksPlan, other: RanksPlan) -> str | None:
    """Return the gain of another split of the same pipeline for one user; None if there is none."""
    context = max((row.context or 0 for row in plan.rows), default=0)
    more = max((row.context or 0 for row in other.rows), default=0)
    if more <= context:
        return None
    split = ",".join(map(str, other.ranks.split))
    than = f"{context:,}" if context else "none"
    return f"--split {split} balances the weights: {more:,} tokens fit, instead of {than}."


class _Group:
    """All ranks together: a context must fit on every one of them."""

    def __init__(
        self,
        whole: ModelShape,
        whole_plans: tuple[CachePlan, ...],
        ranks: RankShapes,
        machine: Machine,
        link: Link,
        reserve_bytes: int,
        kv_cache: KVCacheConfig,
        context: int | None,
    ) -> None:
        self.whole, self.whole_plans, self.ranks, self.machine, self.link = whole, whole_plans, ranks, machine, link
        self.reserve_bytes = reserve_bytes
        self.plans = tuple(plan_caches(rank.caches, kv_cache) for rank in ranks.ranks)
        longest = whole.context_length if context is None else min(context, whole.context_length)
        self.shapes = tuple(replace(rank.shape, context_length=longest) for rank in ranks.ranks)

    def row(self, num_users: int, budget: int) -> RanksRow:
        memories = self.memories(num_users, budget)
        if not memories:
            return RanksRow(num_users)
        context, step = memories[0].context, memories[0].prefill_step
        return RanksRow(num_users, memories, self.decode(context, num_users), self.prefill(context, step))

    def memories(self, num_users: int, budget: int) -> tuple[Memory, ...]:
        """Return the memory of each rank, with the largest context and prefill step for all; empty if none fit."""
        pairs = tuple(zip(self.shapes, self.plans, strict=True))
        alone = [
            largest_context(shape, plans, budget_bytes=budget, num_users=num_users, reserve_bytes=self.reserve_bytes)
            for shape, plans in pairs
        ]
        fitting = [memory for memory in alone if memory is not None]
        if len(fitting) < len(alone):
            return ()
        context = min(memory.context for memory in fitting)
        steps: tuple[int, ...] = PREFILL_STEPS
        for _ in range(2):  # then with the step of the rank with the least room
            at = tuple(
                memory_at(
                    shape,
                    plans,
                    context=context,
                    budget_bytes=budget,
                    num_users=num_users,
                    reserve_bytes=self.reserve_bytes,
                    prefill_steps=steps,
                )
                for shape, plans in pairs
            )
            steps = (min(memory.prefill_step for memory in at),)
        return at

    def decode(self, context: int, num_users: int) -> Estimate | None:
        """Estimate decoding: a pipeline's ranks compute in turn; with tensor parallelism all compute a part at once."""
        if self.ranks.parallel == "pipeline":
            alone = decode_speed(self.whole, self.whole_plans, self.machine, context, num_users)
        else:
            alone = decode_speed(
                self.shapes[0], self.plans[0], self.machine, context, num_users, head_share=1 / self.ranks.size
            )
        return slowed(alone, exchange_s((*self.ranks.messages, _IDS), self.ranks.size, self.link, num_users))

    def prefill(self, context: int, step: int) -> Estimate | None:
        shape = self.whole if self.ranks.parallel == "pipeline" else self.shapes[0]
        chunk = exchange_s(self.ranks.messages, self.ranks.size, self.link, step)
        per_token = Span(chunk.value / step, chunk.low / step, chunk.high / step)
        return slowed(prefill_speed(shape, self.machine, context), per_token)

    def num_chats(self, budget: int) -> int:
        """Return the number of chats that every rank admits."""
        free = [budget - shape.weights_bytes - self.reserve_bytes for shape in self.shapes]
        return min(map(chats_that_fit, self.shapes, self.plans, free))


def _advice(group: _Group, rows: Sequence[RanksRow], budget: int) -> list[str]:
    found = []
    machine, longest = group.machine, group.shapes[0].context_length
    if group.link.id == "tb5" and has_thunderbolt_5(machine) is None:
        found.append("This assumes Thunderbolt 5, RDMA and macOS 26.2 or newer on every machine.")
    short = next((row for row in rows if (row.context or 0) < longest), None)
    raised = highest_gpu_limit(machine.memory_bytes)
    if short is not None and machine.chip and raised > budget:
        more = group.memories(short.num_users, raised)
        if more and more[0].context > (short.context or 0):
            users = "1 user" if short.num_users == 1 else f"{short.num_users} users"
            found.append(
                f"Raise the GPU's limit on every machine to {raised / 1e9:,.0f} GB: sudo sysctl "
                f"iogpu.wired_limit_mb={raised // 2**20} (until the next restart); then {more[0].context:,} tokens fit "
                f"for {users}."
            )
    if not any(row.memories for row in rows) and not found:
        found.append("Use more machines, machines with more memory, fewer bits for the weights, or a smaller model.")
    return found


def _speed(estimate: Estimate) -> str:
    return f"{estimate.value:,.1f}" if estimate.value < 20 else f"{estimate.value:,.0f}"
