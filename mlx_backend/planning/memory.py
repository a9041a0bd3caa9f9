"""The one model of memory: the size of weights, KV caches and a prefill, and what fits. Pure; no MLX.

Sizes are bytes. `pippin plan` uses it without a machine; loading and admission use it while serving.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mlx_backend.kv_cache.allocation import EAGER_BYTES, allocated, most_step_tokens
from mlx_backend.kv_cache.latent_groups import FUSED_HEAD_DIMS, LatentShape, chunk_bytes
from mlx_backend.kv_cache.plan import CachePlan, counted, row_bytes

MOST_RESERVE_BYTES = 3 * 10**9
"""Most bytes reserved by default for the process itself, spare buffers and whatever no formula foresees."""
PREFILL_STEPS = (2048, 1024, 512, 256, 128, 64)
"""Tokens of a prefill chunk that a plan chooses from, the fastest first."""
_SCORE_COPIES = 2.15
"""Score matrices alive at once in latent attention, of which the mask is one: fitted to the published peaks of a
DeepSeek-V3-class model at 4k, 8k and 16k tokens (mlx-lm#839), which it meets within 0.15 GB."""
_CPU_SCORE_COPIES = {False: 1.1, True: 2.05}
_CPU_SINK_COPIES = 3.1
"""The same for attention with sinks: scores, scores with their sink, and their softmax."""
_CPU_ACTIVATIONS = {False: 4.5, True: 3.0}
"""On a CPU, by whether attention is latent, fitted to `python -m bench.memory_model`: copies of scores, and of a
layer's activations, alive at once. Results are allocated ahead of their computation."""
_POSITION_COPIES = 2
"""Int32 matrices [step, context] from which mlx-lm's llama4 makes the mask of attention in chunks."""
_SSM_STEP = 256
"""Tokens of a chunk that a state-space layer computes at a time (mlx-lm's ssm_attn)."""
_SSM_COPIES = 7
"""Float32 matrices [heads, tokens, tokens] that it makes of them and that can be alive at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionShape:
    """One layer's attention: `num_heads` queries, keys of `key_dim` numbers, values of `value_dim`.

    `is_latent`: a chunk expands latents to keys and values of every head, and keeps its scores, unless `is_grouped`.
    """

    num_heads: int
    key_dim: int
    value_dim: int
    rope_dim: int = 0
    """Numbers of a latent key beside `key_dim`, the same for all heads."""
    latent_dim: int = 0
    """Numbers of the latent from which keys and values of all heads are made."""
    is_latent: bool = False
    is_grouped: bool = False
    """Whether a chunk's attention over latents is computed some heads at a time (kv_cache.latent_attention)."""
    has_sinks: bool = False
    """Whether scores get one more column, a learned number per head."""

    @property
    def is_fused(self) -> bool:
        """Whether a chunk's attention keeps no score matrix, on Metal."""
        return not self.is_latent and self.key_dim == self.value_dim and self.key_dim in FUSED_HEAD_DIMS

    @property
    def latents(self) -> LatentShape:
        return LatentShape(
            num_heads=self.num_heads,
            key_dim=self.key_dim,
            value_dim=self.value_dim,
            rope_dim=self.rope_dim,
            latent_dim=self.latent_dim,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """The properties of a model that memory and speed depend on."""

    model_type: str
    num_parameters: int
    weights_bytes: int
    active_parameters: int
    """Parameters used to compute a token: of the experts the chosen ones, of embeddings one row."""
    active_bytes: int
    """Bytes of weights that a decode step of one sequence reads."""
    routed_active_bytes: int = 0
    """Bytes of routed experts among active_bytes."""
    routed_share: float = 0.0
    """Share of the experts that a token chooses; 0 without experts."""
    num_layers: int
    hidden_size: int
    widest: int
    """Most numbers per token that a layer holds at once between attention and the next layer."""
    vocab_size: int
    context_length: int
    itemsize: int
    """Bytes of an activation."""
    attention: AttentionShape | None
    """Attention of the widest layer; None if the model has none."""
    ssm_heads: int = 0
    """Heads of a state-space layer (Mamba 2), which computes a chunk as a matrix per head."""
    num_full_attention_layers: int = 0
    """Layers with attention without a window."""
    index_bytes: float = 0.0
    """Bytes, per token of a chunk and token of the context, that an indexer of sparse attention needs to score one
    against the other, before attention is computed; 0 without an indexer."""

    @property
    def is_moe(self) -> bool:
        return self.routed_share > 0

    @property
    def attention_width(self) -> int:
        """Sum over the layers with full attention of heads x (whole key + value)."""
        if self.attention is None:
            return 0
        per_head = self.attention.key_dim + self.attention.rope_dim + self.attention.value_dim
        return self.num_full_attention_layers * self.attention.num_heads * per_head


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Division of the memory when `num_users` sequences of `context` tokens are held and one of them is prefilled."""

    weights_bytes: int
    kv_bytes: int
    transient_bytes: int
    """Memory of a prefill chunk of `prefill_step` tokens at the end of the context, or of a decode step, if larger."""
    reserve_bytes: int
    context: int
    num_users: int
    prefill_step: int

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.kv_bytes + self.transient_bytes + self.reserve_bytes


def default_reserve(limit_bytes: int) -> int:
    """Return the bytes of a limit that are reserved by default."""
    return min(MOST_RESERVE_BYTES, limit_bytes // 10)


def batch_bytes(plans: Iterable[CachePlan], num_rows: int, longest: int) -> int:
    """Return the bytes of a group's KV caches, all layers: `num_rows` rows, each padded to `longest` tokens."""
    return num_rows * sum(count * row_bytes(plan, longest) for plan, count in counted(plans))


def kv_bytes(plans: Iterable[CachePlan], num_tokens: int, num_rows: int = 1, chunk: int = 0) -> int:
    """Return the bytes of the KV caches, all layers, of `num_rows` sequences of `num_tokens` tokens in separate caches.

    `chunk`: tokens of the last prefill chunk, which a sliding window holds beside its own until the next step.
    """
    return num_rows * sum(count * _row_bytes(plan, num_tokens, chunk) for plan, count in counted(plans))


def _row_bytes(plan: CachePlan, num_tokens: int, chunk: int) -> int:
    shape = plan.shape
    if shape.window is not None:
        return shape.state_bytes + plan.bytes_per_token * min(allocated(num_tokens), shape.window + chunk)
    in_start = min(plan.start, num_tokens)
    full = CachePlan(shape).bytes_per_token * in_start
    return shape.state_bytes + full + plan.bytes_per_token * allocated(num_tokens - in_start)


def prefill_bytes(
    shape: ModelShape, plans: Sequence[CachePlan], step: int, context: int, *, has_fused: bool = True
) -> int:
    """Return the peak memory of a chunk of `step` tokens, the last of `context`, beside weights and caches.

    Latent attention: scores [heads, step, context], and keys and values of every head, expanded. Attention without a
    fused kernel (always so if not `has_fused`): scores. Sparse attention: its indexer's scores, if they are more, and
    its mask. Attention in chunks: positions, from which its mask is made. State-space layers: their matrices. Quantized
    caches: a layer's keys and values, dequantized. And the activations of a layer.
    """
    step = min(step, context)
    activations = step * shape.itemsize * (2 * shape.hidden_size + shape.widest)
    is_latent = shape.attention is not None and shape.attention.is_latent
    needed = activations if has_fused else int(_CPU_ACTIVATIONS[is_latent] * activations)
    needed += max(_attention_bytes(shape, step, context, has_fused), int(shape.index_bytes * step * context))
    needed += step * context if shape.index_bytes else 0
    needed += _SSM_COPIES * shape.ssm_heads * min(step, _SSM_STEP) ** 2 * 4
    caches = counted(plans)
    if any(plan.shape.traits.has_position_mask for plan, _ in caches):
        needed += _POSITION_COPIES * step * context * 4
    needed += max((_shadow_bytes(plan, context) for plan, _ in caches), default=0)
    needed += sum(count * plan.bytes_per_token * step for plan, count in caches if plan.shape.window is not None)
    return needed


def _attention_bytes(shape: ModelShape, step: int, context: int, has_fused: bool) -> int:
    """Return the bytes of one layer's attention: scores, and expanded keys and values."""
    attention, needed = shape.attention, 0
    if attention is None:
        return 0
    if attention.is_grouped:
        needed += chunk_bytes(attention.latents, step, context, shape.itemsize, has_fused=has_fused)
        return needed + step * attention.num_heads * 2 * (attention.rope_dim + attention.value_dim) * shape.itemsize
    if not (attention.is_fused and has_fused):
        needed += int(_score_copies(attention, has_fused) * attention.num_heads * step * context * shape.itemsize)
    if attention.is_latent:
        needed += attention.num_heads * context * (attention.key_dim + attention.value_dim) * shape.itemsize
    return needed


def _score_copies(attention: AttentionShape, has_fused: bool) -> float:
    if has_fused:
        return _SCORE_COPIES
    return _CPU_SINK_COPIES if attention.has_sinks else _CPU_SCORE_COPIES[attention.is_latent]


def _shadow_bytes(plan: CachePlan, context: int) -> int:
    """Return the bytes of a layer's dequantized copy, and of its caches' old arrays while they are moved."""
    tokens = context if plan.shape.window is None else min(context, plan.shape.window)
    copy = CachePlan(plan.shape).bytes_per_token * tokens if plan.is_quantized else 0
    return copy + plan.bytes_per_token * tokens


def decode_bytes(
    shape: ModelShape,
    plans: Iterable[CachePlan],
    context: int,
    num_rows: int,
    held_bytes: int | None = None,
    max_drafts: int = 0,
) -> int:
    """Return the peak memory of a decode step of `num_rows` sequences beside weights and caches.

    Scores, logits, and the new arrays of caches that are moved because rows come or go. `held_bytes`: of the rows'
    caches, if they lie in groups; None: all are padded to `context`. `max_drafts`: tokens per row that a step may
    verify beside its newest one.
    """
    sizes = [(num_rows * row_bytes(plan, context), count) for plan, count in counted(plans)]
    layers = [size for size, count in sizes for _ in range(count)]
    part = 1.0 if held_bytes is None else held_bytes / max(sum(layers), 1)
    layers = [int(part * layer) for layer in layers]
    moved = sum(min(layer, EAGER_BYTES) for layer in layers) + max(layers, default=0)
    heads = shape.attention.num_heads if shape.attention else 0
    num_tokens = most_step_tokens(num_rows, max_drafts)
    scores = int(part * 2 * num_tokens * heads * allocated(context) * 4)
    logits = 4 * num_tokens * shape.vocab_size * 4
    return moved + scores + logits + num_tokens * shape.itemsize * (2 * shape.hidden_size + shape.widest)


def memory_of(
    shape: ModelShape,
    plans: Sequence[CachePlan],
    *,
    context: int,
    num_users: int,
    prefill_step: int,
    reserve_bytes: int,
) -> Memory:
    """Return the memory for `num_users` sequences of `context` tokens while the last chunk of one is prefilled."""
    return Memory(
        weights_bytes=shape.weights_bytes,
        kv_bytes=kv_bytes(plans, context, num_users),
        transient_bytes=max(
            prefill_bytes(shape, plans, prefill_step, context), decode_bytes(shape, plans, context, num_users)
        ),
        reserve_bytes=reserve_bytes,
        context=context,
        num_users=num_users,
        prefill_step=prefill_step,
    )


def memory_at(
    shape: ModelShape,
    plans: Sequence[CachePlan],
    *,
    context: int,
    budget_bytes: int,
    num_users: int,
    reserve_bytes: int,
    prefill_steps: Sequence[int] = PREFILL_STEPS,
) -> Memory:
    """Return that memory with the largest of `prefill_steps` that fits, or else with the smallest."""
    for step in sorted(prefill_steps, reverse=True):
        memory = memory_of(
            shape,
            plans,
            context=context,
            num_users=num_users,
            prefill_step=step,
            reserve_bytes=reserve_bytes,
        )
        if memory.total_bytes <= budget_bytes:
            break
    return memory


def largest_context(
    shape: ModelShape,
    plans: Sequence[CachePlan],
    *,
    budget_bytes: int,
    num_users: int,
    reserve_bytes: int,
    prefill_steps: Sequence[int] = PREFILL_STEPS,
) -> Memory | None:
    """Return the memory at the largest context, up to the model's own, for each of `num_users`; None if nothing fits.

    The prefill step is the largest with which that context fits: a smaller step never makes the context shorter.
    """

    def at(context: int, steps: Sequence[int]) -> Memory:
        return memory_at(
            shape,
            plans,
            context=context,
            budget_bytes=budget_bytes,
            num_users=num_users,
            reserve_bytes=reserve_bytes,
            prefill_steps=steps,
        )

    smallest = (min(prefill_steps),)
    low, high = 0, shape.context_length
    while low < high:  # the memory is monotone in the context
        middle = (low + high + 1) // 2
        fits = at(middle, smallest).total_bytes <= budget_bytes
        low, high = (middle, high) if fits else (low, middle - 1)
    return at(low, prefill_steps) if low else None
