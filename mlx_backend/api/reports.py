"""Reports of a model: its memory, KV caches, prefix cache and embeddings; and how far its loading is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class KVCachePart:
    """Keys or values (of latent attention: the latent or the rotary part) as they were asked for and are held.

    Bits are None for the model's own precision; `note` says why `bits` is not what was requested.
    """

    name: str
    num_heads: int
    dim: int
    requested_bits: int | None
    bits: int | None
    group_size: int | None
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class KVCacheReport:
    """The KV caches of the layers that are alike: how they are held, and bytes per token of one layer."""

    kind: str
    num_layers: int
    window: int | None = None
    """Tokens that a sliding-window layer holds at most."""
    parts: tuple[KVCachePart, ...] = ()
    start: int = 0
    """First tokens of a sequence that are held in full precision."""
    bytes_per_token: int = 0
    full_bytes_per_token: int = 0
    """What it would be in the model's own precision."""
    state_bytes: int = 0
    """Of recurrent state: per sequence, however long."""
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryReport:
    """How the memory is divided; bytes. `limit_basis` says where the limit is from."""

    limit_bytes: int
    limit_basis: str
    weights_bytes: int
    reserve_bytes: int
    cache_bytes: int = 0
    """Freed buffers that the device keeps for reuse, at most; within the limit."""
    wired_bytes: int = 0
    """What is kept from being paged out; 0 for nothing."""
    wired_reason: str = ""
    """Why it is wired, or is not, where the device could."""
    raise_command: str | None = None
    """What a person can run to let the device have more; None where nothing would."""

    @property
    def free_bytes(self) -> int:
        """For KV caches and computing."""
        return self.limit_bytes - self.weights_bytes - self.reserve_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixCacheReport:
    """What becomes of what was computed. `reason`: why nothing is kept, where nothing is."""

    reason: str | None = None
    kinds: tuple[tuple[str, str], ...] = ()
    """(a kind of KV cache, how it is kept)."""
    needs_snapshots: bool = False
    """Some of it cannot be cut: a prompt goes on from a snapshot only."""
    chunk_tokens: int = 0
    ram_bytes: int = 0
    folder: str | None = None
    max_bytes: int = 0
    """Of the folder."""
    num_disk_blocks: int = 0
    """Found in the folder at start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixCacheStats:
    """A snapshot of the prefix cache: what each tier holds, and the prompt tokens that were taken from it."""

    ram_bytes: int = 0
    disk_bytes: int = 0
    num_ram_blocks: int = 0
    num_disk_blocks: int = 0
    num_ram_tokens: int = 0
    num_disk_tokens: int = 0
    num_computed_tokens: int = 0
    """Prompt tokens that had to be computed; the last of a prompt is the first decode's, and not among them."""
    num_evicted: int = 0
    """Blocks that went from memory because there was no room."""
    num_disk_evicted: int = 0
    """... and from the folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingInfo:
    """The vectors that a model makes of prompts: `dim` numbers, of the last, the first or all of the tokens."""

    dim: int
    pooling: Literal["last", "first", "mean"]
    is_normalized: bool
    """Whether every vector has the length 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringInfo:
    """How a model scores a document for a query. `tokens`: by the logits of two; `head`: by a layer of its own."""

    kind: Literal["tokens", "head"]
    basis: str
    """What says so."""
    token_ids: tuple[int, int] | None = None
    """Of the tokens that mean relevant and not; None: those of `words`."""
    words: tuple[str, str] = ("yes", "no")


@dataclass(frozen=True, slots=True, kw_only=True)
class RankInfo:
    """Share of a model that one rank holds; bytes. Limit and what is free are None where nothing bounds them."""

    rank: int
    num_layers: int
    """With tensor parallelism every rank has a part of all layers."""
    weights_bytes: int
    kv_bytes_per_token: int
    limit_bytes: int | None
    free_bytes: int | None
    """For KV caches and computing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RanksInfo:
    """A model that several ranks share: how, and over what. In the order of the ranks."""

    parallel: Literal["tensor", "pipeline"]
    link: str
    ranks: tuple[RankInfo, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RankStats:
    """A snapshot of one rank. Bytes were counted on all ranks after the same call, about once a second."""

    rank: int
    kv_bytes: int
    """Bytes of the caches of live sequences, without what the prefix cache keeps."""
    active_bytes: int
    """Bytes that its device has allocated now, weights among them."""
    peak_bytes: int
    round_trip_s: float | None
    """Seconds for the last answered message to the rank; None for rank 0, and before the first."""
    progress_age_s: float
    """Since it last completed a call; it grows while there is nothing to do."""
    is_busy: bool
    """Whether it has calls that it has not completed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterInfo:
    """A LoRA adapter that is loaded beside a model."""

    name: str
    digest: str = ""
    """A hash of its files, hexadecimal."""
    form: Literal["mlx-lm", "peft", "mock"] = "mlx-lm"
    """The format of its files."""
    rank: int = 0
    num_layers: int = 0
    """Linear layers that it adds to."""
    weights_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """What is known of a loaded model. `pads_chunks`: a prompt's last chunk is padded up to one of a few sizes."""

    context_limit: int
    """The effective limit, tokens: the smallest of the model's own, the configured one and what fits into memory."""
    context_limited_by: Literal["model", "configuration", "memory"] = "model"
    vocab_size: int
    num_parameters: int = 0
    weights_bytes: int = 0
    load_s: float = 0.0
    """What loading took, seconds."""
    is_batched: bool = True
    pads_chunks: bool = False
    unbatched_reason: str | None = None
    """Why sequences are served one at a time, where they are."""
    ungrouped_reason: str | None = None
    """Why every row of a batch is padded to the longest; None where rows lie in groups by length."""
    kv_caches: tuple[KVCacheReport, ...] = ()
    memory: MemoryReport | None = None
    """None where nothing bounds it."""
    dequantized_reason: str | None = None
    """Why attention gets a dequantized copy of every layer's keys and values in every step, where it does."""
    whole_heads_reason: str | None = None
    """Why a chunk's attention over latents is computed for all heads at once, where it is."""
    prefix_cache: PrefixCacheReport = PrefixCacheReport(reason="not known yet")
    embedding: EmbeddingInfo | None = None
    """None: the model makes no embeddings."""
    no_embedding_reason: str = "it was not made for them"
    """Why not, where it makes none."""
    scoring: ScoringInfo | None = None
    """None: the model scores no documents."""
    no_scoring_reason: str = "it was not made for them"
    """Why not, where it scores none."""
    adapters: tuple[AdapterInfo, ...] = ()
    ranks: RanksInfo | None = None
    """None: one process has all of it. Else the weights, the memory and the limits are those of the fullest rank."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """What a model would take, told before it is loaded; bytes."""

    weights_bytes: int
    least_bytes: int
    """Weights, reserve, and what one token's computation needs: with less it cannot be loaded."""
    wanted_bytes: int
    """The same with room for a request of `WANTED_TOKENS`."""
    limit_bytes: int | None
    """What all models of the process may use together; None where nothing bounds it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadProgress:
    """Bytes of weights read so far, of all that will be read; then, of the shapes to warm up, how many are."""

    done_bytes: int = 0
    total_bytes: int = 0
    num_warmed: int = 0
    num_to_warm: int = 0
