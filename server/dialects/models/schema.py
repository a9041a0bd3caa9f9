"""The objects of `/v1/models`: OpenAI's fields, and under `pippin` additional details."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel


class KVCachePart(BaseModel):
    """Keys or values, or the latent or rotary part of latent attention. Bits are null for full precision."""

    name: str
    num_heads: int
    dim: int
    requested_bits: int | None
    bits: int | None
    group_size: int | None
    note: str


class KVCache(BaseModel):
    """The KV caches of all layers of one kind; bytes are per layer."""

    kind: str
    num_layers: int
    window: int | None
    parts: list[KVCachePart]
    start: int
    bytes_per_token: int
    full_bytes_per_token: int
    state_bytes: int
    note: str


class Memory(BaseModel):
    """Division of the memory, in bytes. `limit_basis`: source of the limit; `raise_command`: command that raises it."""

    limit_bytes: int
    limit_basis: str
    weights_bytes: int
    reserve_bytes: int
    free_bytes: int
    cache_bytes: int
    wired_bytes: int
    wired_reason: str
    raise_command: str | None


class KeptKind(BaseModel):
    """A kind of KV cache, and how it is stored: per token, or as snapshots, the only points to resume a prompt from."""

    kind: str
    kept: str


class PrefixCache(BaseModel):
    """Stored prefixes. `reason`: why nothing is stored; `is_on_disk`: whether they survive a restart."""

    reason: str | None
    kinds: list[KeptKind]
    needs_snapshots: bool
    chunk_tokens: int
    ram_bytes: int
    is_on_disk: bool
    max_disk_bytes: int | None


class Adapter(BaseModel):
    """A LoRA adapter loaded beside the model. `digest` covers its files; `num_layers` counts the layers it changes."""

    name: str
    digest: str
    form: Literal["mlx-lm", "peft", "mock"]
    rank: int
    num_layers: int
    weights_bytes: int


class DraftModel(BaseModel):
    """The draft model; its `weights_bytes` are included in the model's. It drafts up to `context_limit` tokens."""

    name: str
    context_limit: int
    num_parameters: int
    weights_bytes: int
    kv_bytes_per_token: int


class EmbeddingDetails(BaseModel):
    """The vectors of `/v1/embeddings`.

    Their size, and whether the last, the first or all tokens of an input are pooled.
    """

    dim: int
    pooling: Literal["last", "first", "mean"]
    is_normalized: bool


class ScoringDetails(BaseModel):
    """Scoring method of `/v1/rerank`: the logits of two `tokens`, or the model's own `head`; `basis`: its source."""

    kind: Literal["tokens", "head"]
    basis: str


class ToolCalls(BaseModel):
    """The form in which the model writes calls: a row of the table in docs/calls.md.

    `told_by`: what describes the tools to the model: its chat template, or else this server in the prompt.
    """

    form: str
    told_by: Literal["template", "prompt"]


class Rank(BaseModel):
    """Memory of one rank, in bytes. The limit and the bytes free for requests are null if nothing bounds them."""

    rank: int
    num_layers: int
    weights_bytes: int
    kv_bytes_per_token: int
    limit_bytes: int | None
    free_bytes: int | None


class Ranks(BaseModel):
    """A model split across ranks: `tensor`, a part of every layer each, or `pipeline`, some of the layers each."""

    count: int
    parallel: Literal["tensor", "pipeline"]
    link: str
    ranks: list[Rank]


class ModelDetails(BaseModel):
    """Details of a loaded model.

    `unbatched_reason`: why sequences are served one at a time. `ungrouped_reason`: why all sequences of a batch take
    the memory of the longest. `whole_heads_reason`: why a prompt's attention over latents is computed for all heads at
    once.

    `dequantized_reason`: why attention dequantizes the KV cache in every step. `no_embedding_reason`: why the model
    has no embeddings; `no_scoring_reason`: why it does not rerank. `max_draft_tokens`: most drafts of a sequence
    that a step verifies; `no_drafts_reason`: why it verifies none. `draft_model`: null without a draft model.
    `tool_calls`: null if the model cannot call, or is not loaded now; `has_reasoning`: whether its reasoning is
    separated. `ranks`: null if one process has the whole model; otherwise weights, memory and context are those of the
    rank with the least room.
    """

    context_limit: int
    context_limited_by: Literal["model", "configuration", "memory"]
    vocab_size: int
    num_parameters: int
    weights_bytes: int
    is_batched: bool
    unbatched_reason: str | None
    ungrouped_reason: str | None
    whole_heads_reason: str | None
    max_draft_tokens: int
    no_drafts_reason: str | None
    draft_model: DraftModel | None
    kv_caches: list[KVCache]
    dequantized_reason: str | None
    adapters: list[Adapter]
    embedding: EmbeddingDetails | None
    no_embedding_reason: str | None
    scoring: ScoringDetails | None
    no_scoring_reason: str | None
    tool_calls: ToolCalls | None
    has_reasoning: bool
    memory: Memory | None
    prefix_cache: PrefixCache
    ranks: Ranks | None
    stall_s: float
    """Longest wait of a running stream for other prompts, in seconds, by the speeds measured so far."""


class ModelObject(BaseModel):
    """One served model. `max_model_len` and `pippin` are null before its first load, then as of the last load."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "pippin"
    parent: str | None = None
    """The model of an adapter."""
    state: Literal["unloaded", "loading", "loaded", "unloading", "failed"]
    max_model_len: int | None
    pippin: ModelDetails | None


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelObject]


class AnthropicModel(BaseModel):
    """One served model in Anthropic's form; the limits are null before its first load."""

    type: Literal["model"] = "model"
    id: str
    display_name: str
    created_at: str
    lifecycle: Literal["active"] = "active"
    max_input_tokens: int | None
    max_tokens: int | None


class AnthropicModelList(BaseModel):
    """All models, on one page."""

    data: list[AnthropicModel]
    has_more: Literal[False] = False
    first_id: str | None
    last_id: str | None
