"""A plan: whether a model fits a machine, its context by number of users, its speed, and advice.

Pure: shapes, a machine and arithmetic in, facts and sentences out. No MLX, no printing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mlx_backend.api.errors import ModelLoadError
from mlx_backend.api.interface import KVCacheConfig
from mlx_backend.kv_cache.plan import CachePlan, CacheShape, plan_caches
from mlx_backend.planning.admission import Budget, Reservation
from mlx_backend.planning.machines import Machine, highest_gpu_limit
from mlx_backend.planning.memory import MOST_RESERVE_BYTES, Memory, ModelShape, kv_bytes, largest_context, memory_at
from mlx_backend.planning.speed import Estimate, decode_estimate, prefill_estimate
from mlx_backend.planning.wiring import WiredPolicy, Wiring, WiringFacts, decide_wiring

CHAT_TOKENS = 2048
"""Prompt and answer of an ordinary chat."""
MOST_CHATS = 128
"""Most chats that are tried."""
_TRIED_BITS = (8, 6, 5, 4, 3)
_GROUP_SIZE = 64


@dataclass(frozen=True, slots=True)
class Row:
    """Context and speed for this many users together; `memory` is None if it does not fit."""

    num_users: int
    memory: Memory | None
    decode: Estimate | None = None
    """Tokens per second of each user, at that context."""
    prefill: Estimate | None = None
    """Tokens per second, over a prompt of that context."""

    @property
    def ttft_s(self) -> float | None:
        """Seconds until the first token of a prompt that fills the context."""
        if self.memory is None or self.prefill is None:
            return None
        return self.memory.context / self.prefill.value


@dataclass(frozen=True, slots=True)
class KVChoice:
    """The largest context of one user with a KV cache in this many bits; None: in full precision."""

    bits: int | None
    bytes_per_token: int
    context: int | None


@dataclass(frozen=True, slots=True)
class Plan:
    """The plan of one model on one machine."""

    shape: ModelShape
    machine: Machine
    budget_bytes: int
    reserve_bytes: int
    kv_cache: KVCacheConfig
    caches: tuple[CachePlan, ...]
    rows: tuple[Row, ...]
    kv_choices: tuple[KVChoice, ...]
    advice: tuple[str, ...]
    num_chats: int = 0
    """Chats of `CHAT_TOKENS` that fit at once, `MOST_CHATS` at most: as many as admission by expected length admits."""

    @property
    def fits(self) -> bool:
        return any(row.memory is not None for row in self.rows)


def build_plan(
    shape: ModelShape,
    caches: Sequence[CacheShape],
    machine: Machine,
    kv_cache: KVCacheConfig,
    *,
    users: Sequence[int] = (1, 2, 4, 8),
    context: int | None = None,
    budget_bytes: int | None = None,
    reserve_bytes: int = MOST_RESERVE_BYTES,
) -> Plan:
    """Return the plan. `context`: most tokens per user; `budget_bytes`: for the model, by default the GPU's limit.

    Raises ModelLoadError for a KV cache that this model cannot have.
    """
    plans = plan_caches(caches, kv_cache)
    budget = machine.gpu_limit_bytes if budget_bytes is None else budget_bytes
    limited = _limited(shape, context)
    rows = tuple(_row(limited, plans, machine, budget, reserve_bytes, num_users) for num_users in users)
    return Plan(
        shape=shape,
        machine=machine,
        budget_bytes=budget,
        reserve_bytes=reserve_bytes,
        kv_cache=kv_cache,
        caches=plans,
        rows=rows,
        kv_choices=_kv_choices(limited, caches, budget, reserve_bytes),
        advice=(*_advice(limited, plans, machine, budget, reserve_bytes, rows), *_wiring(shape, machine, rows, budget)),
        num_chats=chats_that_fit(limited, plans, budget - shape.weights_bytes - reserve_bytes),
    )


def memory_by_context(plan: Plan, contexts: Sequence[int], num_users: int = 1) -> list[Memory]:
    """Return the memory at each of `contexts`, with the largest prefill step that fits, or the smallest."""
    return [
        memory_at(
            plan.shape,
            plan.caches,
            context=context,
            budget_bytes=plan.budget_bytes,
            num_users=num_users,
            reserve_bytes=plan.reserve_bytes,
        )
        for context in contexts
    ]


def decode_speed(
    shape: ModelShape,
    plans: Sequence[CachePlan],
    machine: Machine,
    context: int,
    num_users: int = 1,
    *,
    head_share: float = 1.0,
    num_drafts: int = 0,
) -> Estimate | None:
    """Return steps per second, one token for each of `num_users` with `context` tokens; None if unknown.

    `num_drafts`: tokens of all users that a step verifies beside those. `head_share`: share of the model's heads on one
    rank of several. Heads multiply a latent that every rank has.
    """
    is_latent = shape.attention is not None and shape.attention.is_latent
    return decode_estimate(
        shape.active_bytes,
        kv_bytes(plans, context) * (head_share if is_latent else 1.0),
        machine,
        shape.num_layers,
        shape.is_moe,
        num_users,
        is_latent=is_latent,
        query_read_bytes=shape.itemsize * shape.attention_width * context,
        routed_bytes=shape.routed_active_bytes,
        routed_share=shape.routed_share,
        num_drafts=num_drafts,
    )


def prefill_speed(shape: ModelShape, machine: Machine, num_tokens: int) -> Estimate | None:
    """Return tokens per second over a whole prompt; None if unknown."""
    return prefill_estimate(
        shape.active_parameters,
        num_tokens,
        machine,
        is_moe=shape.is_moe,
        attention_width=shape.attention_width,
    )


def weights_read_s(shape: ModelShape, machine: Machine, num_tokens: int) -> float:
    """Return the seconds to read the weights for this many tokens, the least time of a chunk; 0 if unknown."""
    estimate = decode_estimate(
        shape.active_bytes,
        0.0,
        machine,
        shape.num_layers,
        shape.is_moe,
        num_tokens,
        routed_bytes=shape.routed_active_bytes,
        routed_share=shape.routed_share,
    )
    return 1.0 / estimate.value if estimate else 0.0


def _limited(shape: ModelShape, context: int | None) -> ModelShape:
    return shape if context is None else replace(shape, context_length=min(context, shape.context_length))


def _row(
    shape: ModelShape,
    plans: Sequence[CachePlan],
    machine: Machine,
    budget: int,
    reserve: int,
    num_users: int,
) -> Row:
    memory = largest_context(shape, plans, budget_bytes=budget, num_users=num_users, reserve_bytes=reserve)
    if memory is None:
        return Row(num_users, None)
    decode = decode_speed(shape, plans, machine, memory.context, num_users)
    return Row(num_users, memory, decode, prefill_speed(shape, machine, memory.context))


def chats_that_fit(shape: ModelShape, plans: Sequence[CachePlan], free_bytes: int) -> int:
    """Return the chats of CHAT_TOKENS that fit at once beside weights and reserve, MOST_CHATS at most."""
    budget, num_tokens = Budget(shape, plans, free_bytes), min(CHAT_TOKENS, shape.context_length)
    chat = Reservation(1, num_tokens, num_tokens, is_prefilled=True)
    low, high = 0, MOST_CHATS
    while low < high:  # their memory is monotone in their number
        middle = (low + high + 1) // 2
        fits = budget.admits([chat] * middle)
        low, high = (middle, high) if fits else (low, middle - 1)
    return low


def _kv_choices(shape: ModelShape, caches: Sequence[CacheShape], budget: int, reserve: int) -> tuple[KVChoice, ...]:
    found = []
    for bits in (None, 8, 4):
        plans = _planned(caches, bits)
        if plans is None:
            continue
        memory = largest_context(shape, plans, budget_bytes=budget, num_users=1, reserve_bytes=reserve)
        per_token = sum(plan.bytes_per_token for plan in plans)
        found.append(KVChoice(bits, per_token, None if memory is None else memory.context))
    return tuple(found)


def _planned(caches: Sequence[CacheShape], bits: int | None) -> tuple[CachePlan, ...] | None:
    """Return the plans, or None if this model's KV cache cannot be quantized in any group size."""
    for group_size in (64, 32, 128):
        config = KVCacheConfig() if bits is None else KVCacheConfig(bits=bits, group_size=group_size)
        try:
            return plan_caches(caches, config)
        except ModelLoadError:
            continue
    return None


def _advice(
    shape: ModelShape,
    plans: Sequence[CachePlan],
    machine: Machine,
    budget: int,
    reserve: int,
    rows: Sequence[Row],
) -> list[str]:
    """Return possible changes, the most useful first; none if the whole context fits for every number of users."""
    short = next((row for row in rows if row.memory is None or row.memory.context < shape.context_length), None)
    if short is None:
        return []
    found = []
    raised = highest_gpu_limit(machine.memory_bytes)
    if machine.chip and raised > budget:
        more = largest_context(shape, plans, budget_bytes=raised, num_users=short.num_users, reserve_bytes=reserve)
        if more is not None and (short.memory is None or more.context > short.memory.context):
            found.append(
                f"Raise the GPU's limit to {raised / 1e9:,.0f} GB: sudo sysctl iogpu.wired_limit_mb={raised // 2**20} "
                f"(until the next restart); then {more.context:,} tokens fit for {_users(short.num_users)}."
            )
    if rows[0].memory is None:
        found += _smaller_weights(shape, plans, budget, reserve)
    return found


def plan_wiring(
    machine: Machine, weights_bytes: int, policy: WiredPolicy = "auto", limit_bytes: int | None = None
) -> Wiring:
    """Return the decision of a server alone on such a machine, with versions that wire and without an earlier panic."""
    limit = machine.gpu_limit_bytes if limit_bytes is None else limit_bytes
    facts = WiringFacts(
        policy=policy,
        weights_bytes=weights_bytes,
        device=f"Apple {machine.chip}",
        memory_bytes=machine.memory_bytes,
        recommended_bytes=limit if machine.chip else 0,
        macos=(26,),
        mlx=(0, 32, 4),
    )
    return decide_wiring(facts)


def _wiring(shape: ModelShape, machine: Machine, rows: Sequence[Row], budget: int) -> list[str]:
    """Return the advice on the weights with `memory.wired: auto`."""
    wiring = plan_wiring(machine, shape.weights_bytes, limit_bytes=budget)
    if not wiring.wired_bytes or rows[0].memory is None:
        return []
    return [
        f"The weights, {wiring.wired_bytes / 1e9:,.1f} GB, are wired and requests are batched, unless the GPU driver "
        "has panicked before or another process has wired memory (not run on a Mac; docs/memory.md)."
    ]


def _smaller_weights(shape: ModelShape, plans: Sequence[CachePlan], budget: int, reserve: int) -> list[str]:
    for bits in _TRIED_BITS:
        weights = round(shape.num_parameters * (bits + 32 / _GROUP_SIZE) / 8)
        if weights >= shape.weights_bytes:
            continue
        smaller = replace(shape, weights_bytes=weights)
        fitting = largest_context(smaller, plans, budget_bytes=budget, num_users=1, reserve_bytes=reserve)
        if fitting is not None:
            return [
                f"Quantize the weights to {bits} bits in groups of {_GROUP_SIZE}: about {weights / 1e9:,.0f} GB; "
                f"then {fitting.context:,} tokens fit for 1 user."
            ]
    least = round(shape.num_parameters * (_TRIED_BITS[-1] + 32 / _GROUP_SIZE) / 8)
    return [
        f"No useful quantization of this model fits: at {_TRIED_BITS[-1]} bits its weights are about "
        f"{least / 1e9:,.0f} GB, and only {max(0, budget - reserve) / 1e9:,.0f} GB are available. Use a machine "
        "with more memory, several machines, or a smaller model."
    ]


def _users(count: int) -> str:
    return "1 user" if count == 1 else f"{count} users"
