"""The objects of `/v1/models`: OpenAI's fields, and under `pippin` what this server knows besides."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel


class KVCachePart(BaseModel):
    """Keys or values, of latent attention the latent or the rotary part. Bits are null for full precision."""

    name: str
    num_heads: int
    dim: int
    requested_bits: int | None
    bits: int | None
    group_size: int | None
    note: str


class KVCache(BaseModel):
    """The KV caches of all layers that are alike; bytes are those of one layer."""

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
    """How the memory is divided, bytes; `limit_basis` says where the limit is from, `raise_command` what raises it."""

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
    """A kind of KV cache, and how it is kept: by the token, or as snapshots, from which alone a prompt goes on."""

    kind: str
    kept: str


class PrefixCache(BaseModel):
    """What is kept of prompts and answers. `reason`: why nothing is; `is_on_disk`: it survives a restart."""

    reason: str | None
    kinds: list[KeptKind]
    needs_snapshots: bool
    chunk_tokens: int
    ram_bytes: int
    is_on_disk: bool
    max_disk_bytes: int | None


class Adapter(BaseModel):
    """A LoRA adapter that is loaded beside the model; `digest` is of its files, `num_layers` what it adds to."""

    name: str
    digest: str
    form: Literal["mlx-lm", "peft", "mock"]
    rank: int
    num_layers: int
    weights_bytes: int


class DraftModel(BaseModel):
    """The smaller model that drafts; `weights_bytes` are among the model's. `context_limit`: tokens it drafts up to."""

    name: str
    context_limit: int
    num_parameters: int
    weights_bytes: int
    kv_bytes_per_token: int


class EmbeddingDetails(BaseModel):
    """The vectors of `/v1/embeddings`: so many numbers, pooled of the last, the first or all tokens of an input."""

    dim: int
    pooling: Literal["last", "first", "mean"]
    is_normalized: bool


class ScoringDetails(BaseModel):
    """How `/v1/rerank` scores: by the logits of two `tokens`, or by a `head` of its own; and what says so."""

    kind: Literal["tokens", "head"]
    basis: str


class ToolCalls(BaseModel):
    """The form in which the model writes calls: a row of the table in docs/calls.md.

    `told_by`: what tells the model of the tools, its chat template or, where that does not, this server in the prompt.
    """

    form: str
    told_by: Literal["template", "prompt"]


class Rank(BaseModel):
    """What one rank holds; bytes. Limit and what is free for requests are null where nothing bounds them."""

    rank: int
    num_layers: int
    weights_bytes: int
    kv_bytes_per_token: int
    limit_bytes: int | None
    free_bytes: int | None


class Ranks(BaseModel):
    """A model that several ranks share: `tensor`, a part of every layer each, or `pipeline`, some of the layers."""

    count: int
    parallel: Literal["tensor", "pipeline"]
    link: str
    ranks: list[Rank]


class ModelDetails(BaseModel):
    """What is known of a loaded model. `unbatched_reason` says why sequences are served one at a time,
    `ungrouped_reason` why all sequences of a batch take the memory of the longest, `whole_heads_reason` why a prompt's
    attention over latents is computed for all heads at once.

    `dequantized_reason`: why attention dequantizes the KV cache in every step. `no_embedding_reason`: why the model
    makes no embeddings; `no_scoring_reason`: why it does not rerank. `max_draft_tokens`: guesses of a sequence that a
    step verifies, at most; `no_drafts_reason`: why it verifies none. `draft_model`: null where none drafts.
    `tool_calls`: null where the model cannot call, or is not loaded now; `has_reasoning`: its thoughts are told apart.
    `ranks`: null where one process has the whole model; else weights, memory and context are those of the rank with
    the least room.
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
    """Seconds that a running stream waits for other prompts at most, by the speeds measured so far."""


class ModelObject(BaseModel):
    """One served model; `max_model_len` and `pippin` are null until it has been loaded, then as of its last load."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "pippin"
    parent: str | None = None
    """Of an adapter, the model that it belongs to."""
    state: Literal["unloaded", "loading", "loaded", "unloading", "failed"]
    max_model_len: int | None
    pippin: ModelDetails | None


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelObject]


class AnthropicModel(BaseModel):
    """One served model in Anthropic's form; the limits are null until it has been loaded."""

    type: Literal["model"] = "model"
    id: str
    display_name: str
    created_at: str
    lifecycle: Literal["active"] = "active"
    max_input_tokens: int | None
    max_tokens: int | None


class AnthropicModelList(BaseModel):
    """All of them are on one page."""

    data: list[AnthropicModel]
    has_more: Literal[False] = False
    first_id: str | None
    last_id: str | None
