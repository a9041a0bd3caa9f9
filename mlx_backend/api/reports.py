"""Reports of a model: its memory, KV caches, prefix cache and embeddings; and the progress of loading."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

NO_SPECULATION = "speculation.kind is off"


@dataclass(frozen=True, slots=True, kw_only=True)
class KVCachePart:
    """Keys or values (of latent attention: the latent or the rotary part) as requested and as held.

    Bits are None for the model's own precision; `note` gives the reason if `bits` differs from the request.
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
    """The KV caches of equal layers: their form, and bytes per token of one layer."""

    kind: str
    num_layers: int
    window: int | None = None
    """Most tokens that a sliding-window layer holds."""
    parts: tuple[KVCachePart, ...] = ()
    start: int = 0
    """First tokens of a sequence that are held in full precision."""
    bytes_per_token: int = 0
    full_bytes_per_token: int = 0
    """Bytes per token in the model's own precision."""
    state_bytes: int = 0
    """Bytes of recurrent state per sequence, of any length."""
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryReport:
    """Division of the memory, in bytes. `limit_basis` is the origin of the limit."""

    limit_bytes: int
    limit_basis: str
    weights_bytes: int
    reserve_bytes: int
    cache_bytes: int = 0
    """Most freed buffers that the device keeps for reuse; within the limit."""
    wired_bytes: int = 0
    """Memory that is not paged out; 0 for none."""
    wired_reason: str = ""
    """Reason why it is, or is not, wired, if the device can wire memory."""
    raise_command: str | None = None
    """Command that lets the device have more memory; None if there is none."""

    @property
    def free_bytes(self) -> int:
        """Bytes for KV caches and computing."""
        return self.limit_bytes - self.weights_bytes - self.reserve_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixCacheReport:
    """Settings of the prefix cache. `reason`: why there is none, if so."""

    reason: str | None = None
    kinds: tuple[tuple[str, str], ...] = ()
    """(kind of KV cache, how it is kept)."""
    needs_snapshots: bool = False
    """Whether some of it cannot be cut, so that a prompt continues only from a snapshot."""
    chunk_tokens: int = 0
    ram_bytes: int = 0
    folder: str | None = None
    max_bytes: int = 0
    """Most bytes of the folder."""
    num_disk_blocks: int = 0
    """Blocks found in the folder at start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixCacheStats:
    """A snapshot of the prefix cache: the content of each tier, and the prompt tokens taken from it."""

    ram_bytes: int = 0
    disk_bytes: int = 0
    num_ram_blocks: int = 0
    num_disk_blocks: int = 0
    num_ram_tokens: int = 0
    num_disk_tokens: int = 0
    num_computed_tokens: int = 0
    """Prompt tokens that had to be computed; not counting a prompt's last, which belongs to the first decode step."""
    num_evicted: int = 0
    """Blocks evicted from memory for lack of room."""
    num_disk_evicted: int = 0
    """Blocks evicted from the folder for lack of room."""


@dataclass(frozen=True, slots=True)
class DraftedTokens:
    """Tokens that were drafted and verified, and those of them that were accepted."""

    num_drafted: int = 0
    num_accepted: int = 0
    num_predicted: int = 0
    """Drafted tokens that the client predicted."""
    num_predicted_accepted: int = 0

    def __add__(self, other: DraftedTokens) -> DraftedTokens:
        return DraftedTokens(
            self.num_drafted + other.num_drafted,
            self.num_accepted + other.num_accepted,
            self.num_predicted + other.num_predicted,
            self.num_predicted_accepted + other.num_predicted_accepted,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeculationStats:
    """A snapshot of speculation."""

    num_steps: int = 0
    """Decode steps with drafts."""
    drafted: DraftedTokens = DraftedTokens()
    won_s: float = 0.0
    """Seconds by which these steps were shorter than their tokens would have taken without drafts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingInfo:
    """The vectors that a model makes of prompts: `dim` numbers, of the last, the first or all of the tokens."""

    dim: int
    pooling: Literal["last", "first", "mean"]
    is_normalized: bool
    """Whether every vector has length 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringInfo:
    """How a model scores a document for a query. `tokens`: by the logits of two; `head`: by a layer of its own."""

    kind: Literal["tokens", "head"]
    basis: str
    """Source of this information."""
    token_ids: tuple[int, int] | None = None
    """Ids of the tokens that mean relevant and not; None: those of `words`."""
    words: tuple[str, str] = ("yes", "no")


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftModelInfo:
    """The smaller model that drafts for a model, held beside it."""

    name: str
    context_limit: int
    """Tokens up to which it drafts; longer sequences go on without."""
    num_parameters: int = 0
    weights_bytes: int = 0
    kv_bytes_per_token: int = 0
    """Bytes of its own KV caches, for each token of a sequence that it drafts for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankInfo:
    """Share of a model on one rank; bytes. `limit_bytes` and `free_bytes` are None if nothing bounds them."""

    rank: int
    num_layers: int
    """With tensor parallelism every rank has a part of all layers."""
    weights_bytes: int
    kv_bytes_per_token: int
    limit_bytes: int | None
    free_bytes: int | None
    """Bytes for KV caches and computing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RanksInfo:
    """The split of a model over several ranks, and their link. In the order of the ranks."""

    parallel: Literal["tensor", "pipeline"]
    link: str
    ranks: tuple[RankInfo, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RankStats:
    """A snapshot of one rank. Bytes were counted on all ranks after the same call, about once a second."""

    rank: int
    kv_bytes: int
    """Bytes of the caches of live sequences, without the prefix cache."""
    active_bytes: int
    """Bytes that its device has allocated now, including weights."""
    peak_bytes: int
    round_trip_s: float | None
    """Seconds for the last answered message to the rank; None for rank 0, and before the first."""
    progress_age_s: float
    """Seconds since it last completed a call; grows while it is idle."""
    is_busy: bool
    """Whether it has uncompleted calls."""


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
    """Number of linear layers that it changes."""
    weights_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """Properties of a loaded model. `pads_chunks`: a prompt's last chunk is padded up to one of a few sizes."""

    context_limit: int
    """The effective limit, tokens: the smallest of the model's own, the configured one and what fits into memory."""
    context_limited_by: Literal["model", "configuration", "memory"] = "model"
    vocab_size: int
    num_parameters: int = 0
    weights_bytes: int = 0
    load_s: float = 0.0
    """Seconds that loading took."""
    is_batched: bool = True
    pads_chunks: bool = False
    unbatched_reason: str | None = None
    """Reason why sequences are served one at a time; None if they are not."""
    ungrouped_reason: str | None = None
    """Reason why every row of a batch is padded to the longest; None if rows lie in groups by length."""
    kv_caches: tuple[KVCacheReport, ...] = ()
    memory: MemoryReport | None = None
    """None if nothing bounds it."""
    dequantized_reason: str | None = None
    """Reason why attention gets a dequantized copy of every layer's keys and values in every step; None if not."""
    whole_heads_reason: str | None = None
    """Reason why a chunk's attention over latents is computed for all heads at once; None if it is not."""
    prefix_cache: PrefixCacheReport = PrefixCacheReport(reason="not known yet")
    max_drafts: int = 0
    """Most tokens of a request that a step may verify beside its newest one; 0: no speculation."""
    no_drafts_reason: str = NO_SPECULATION
    """Reason why it is 0."""
    draft_model: DraftModelInfo | None = None
    """None: none drafts. Its weights are among `weights_bytes`, as those of adapters are."""
    embedding: EmbeddingInfo | None = None
    """None: the model makes no embeddings."""
    no_embedding_reason: str = "it was not made for them"
    """Reason why it makes none."""
    scoring: ScoringInfo | None = None
    """None: the model scores no documents."""
    no_scoring_reason: str = "it was not made for them"
    """Reason why it scores none."""
    adapters: tuple[AdapterInfo, ...] = ()
    ranks: RanksInfo | None = None
    """None: one process has all of it. Otherwise weights, memory and limits are those of the fullest rank."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """Memory of a model, estimated before it is loaded; bytes."""

    weights_bytes: int
    least_bytes: int
    """Weights, reserve, and the computation of one token: with less it cannot be loaded."""
    wanted_bytes: int
    """The same with room for a request of `WANTED_TOKENS`."""
    limit_bytes: int | None
    """Limit for all models of the process together; None if nothing bounds it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadProgress:
    """Bytes of weights read so far, and their total; then the shapes warmed up so far, and their number."""

    done_bytes: int = 0
    total_bytes: int = 0
    num_warmed: int = 0
    num_to_warm: int = 0
