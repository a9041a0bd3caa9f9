"""Every type that crosses between the server and the engine: configuration, request, events, state.

Plain frozen dataclasses; those of the configuration are in `config.py`, those that describe a model in `reports.py`. No
MLX, no pydantic, no HTTP, no text.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Literal, Protocol

from mlx_backend.api.config import MOST_DRAFT_TOKENS as MOST_DRAFT_TOKENS
from mlx_backend.api.config import AdapterConfig as AdapterConfig
from mlx_backend.api.config import ContextConfig as ContextConfig
from mlx_backend.api.config import DebugConfig as DebugConfig
from mlx_backend.api.config import EngineConfig as EngineConfig
from mlx_backend.api.config import HealthConfig as HealthConfig
from mlx_backend.api.config import KVCacheConfig as KVCacheConfig
from mlx_backend.api.config import MemoryConfig as MemoryConfig
from mlx_backend.api.config import MemoryShare as MemoryShare
from mlx_backend.api.config import MockConfig as MockConfig
from mlx_backend.api.config import Parallel as Parallel
from mlx_backend.api.config import PrefixCacheConfig as PrefixCacheConfig
from mlx_backend.api.config import RanksConfig as RanksConfig
from mlx_backend.api.config import SchedulerConfig as SchedulerConfig
from mlx_backend.api.config import SimulateConfig as SimulateConfig
from mlx_backend.api.config import SpeculationConfig as SpeculationConfig
from mlx_backend.api.grammars import Grammar as Grammar
from mlx_backend.api.grammars import GrammarState as GrammarState
from mlx_backend.api.hosts import RankHost as RankHost
from mlx_backend.api.hosts import RankHosts as RankHosts
from mlx_backend.api.reports import NO_SPECULATION as NO_SPECULATION
from mlx_backend.api.reports import AdapterInfo as AdapterInfo
from mlx_backend.api.reports import DraftedTokens as DraftedTokens
from mlx_backend.api.reports import DraftModelInfo as DraftModelInfo
from mlx_backend.api.reports import EmbeddingInfo as EmbeddingInfo
from mlx_backend.api.reports import Footprint as Footprint
from mlx_backend.api.reports import KVCachePart as KVCachePart
from mlx_backend.api.reports import KVCacheReport as KVCacheReport
from mlx_backend.api.reports import LoadProgress as LoadProgress
from mlx_backend.api.reports import MemoryReport as MemoryReport
from mlx_backend.api.reports import ModelInfo as ModelInfo
from mlx_backend.api.reports import PrefixCacheReport as PrefixCacheReport
from mlx_backend.api.reports import PrefixCacheStats as PrefixCacheStats
from mlx_backend.api.reports import RankInfo as RankInfo
from mlx_backend.api.reports import RanksInfo as RanksInfo
from mlx_backend.api.reports import RankStats as RankStats
from mlx_backend.api.reports import ScoringInfo as ScoringInfo
from mlx_backend.api.reports import SpeculationStats as SpeculationStats

FinishReason = Literal["stop", "length"]
Priority = Literal["live", "normal", "batch"]
PRIORITIES: tuple[Priority, ...] = ("live", "normal", "batch")
"""The classes of requests, the most urgent first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Parameters of sampling. Neutral values switch a filter off; `temperature` 0 is greedy."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    typical_p: float = 1.0
    top_n_sigma: float = 0.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    xtc_kept_ids: tuple[int, ...] = ()
    """Tokens that XTC never removes, beside the request's stop ids."""
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_range: int = 1024
    """Newest tokens of prompt and output that are searched for repetitions; at least 2."""
    dry_breaker_ids: tuple[int, ...] = ()
    logit_bias: tuple[tuple[int, float], ...] = ()
    allowed_token_ids: tuple[int, ...] = ()
    """Empty: all."""
    bad_words: tuple[tuple[int, ...], ...] = ()
    """Token sequences; the last token of one is not drawn if the output ends in the others. None is empty."""
    seed: int | None = None
    num_logprobs: int | None = None
    """None: no log-probabilities; k >= 0: the chosen token's and the k most likely ones'."""
    logprob_ids: tuple[int, ...] = ()
    """Tokens whose log-probabilities are told beside these, where `num_logprobs` is not None."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One prompt and its n continuations."""

    request_id: str
    prompt_ids: tuple[int, ...]
    max_tokens: int
    """0: the sequences end, with `length`, as soon as their prompt is computed."""
    n: int = 1
    sampling: SamplingParams = field(default_factory=SamplingParams)
    stop_ids: frozenset[int] = frozenset()
    """Tokens that end a sequence with `stop`; empty to ignore the end-of-sequence token."""
    min_tokens: int = 0
    """Number of outputs before which no stop id is drawn."""
    num_prompt_logprobs: int | None = None
    """None: none of the prompt; k >= 0: those of its tokens from the second on, and of the k most likely ones there."""
    grammar: Grammar | None = None
    """Grammar that every continuation follows; its end is a stop token."""
    uses_prefix_cache: bool = True
    """Whether cached computations are used, and new ones are stored."""
    tenant: str = ""
    """Owner of the request: different tenants take turns in the queue."""
    priority: Priority = "normal"
    """The class that decides who is admitted, computed and preempted first."""
    cache_salt: str = ""
    """Prompts of different salts share nothing."""
    adapter: str = ""
    """Adapter of the model that computes it; empty: none. Prompts of different adapters share nothing."""
    system_border: int = 0
    """Tokens at the beginning that other conversations share: the system prompt."""
    cache_breakpoints: tuple[int, ...] = ()
    """Positions at which another prompt may continue differently, ascending: snapshots are most useful there."""
    mock: MockText | None = None
    """For the mock backend."""
    prediction_ids: tuple[int, ...] = ()
    """Output that the client expects, the first source of drafts. No token depends on it."""
    speculates: bool = True
    """Whether its tokens may be drafted and verified several at a time."""
    embeds: bool = False
    """Whether to return the prompt's vector and generate nothing: `max_tokens` is 0. Requires an embedding model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MockText:
    """Output of the mock backend in place of its own words; other backends ignore it."""

    outputs: tuple[tuple[int, ...], ...]
    """Token ids of each continuation, without its end token."""
    closing_ids: frozenset[int] = frozenset()
    """Tokens that bring an answer in JSON closer to its end, if a grammar bars the intended ones."""
    filling_ids: frozenset[int] = frozenset()
    """Tokens with which such an answer could continue endlessly."""


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Natural logarithms under the model's own distribution, before any filter, penalty or temperature."""

    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    """(token id, log-probability), most likely first."""
    asked: tuple[float, ...] = ()
    """Log-probabilities of the request's `logprob_ids`."""


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One token of one sequence. `index` counts over the stream: request by request, n of each."""

    index: int
    token_id: int
    logprobs: TokenLogprobs | None = None
    finish_reason: FinishReason | None = None
    """`stop`: token_id is one of stop_ids. `length`: the token is the last that max_tokens allows."""


@dataclass(frozen=True, slots=True)
class PromptEvent:
    """A sequence's prompt is computed. Precedes its tokens, if `num_prompt_logprobs` is set or max_tokens is 0."""

    index: int
    logprobs: tuple[TokenLogprobs, ...] = ()
    """Log-probabilities of the prompt's tokens from the second on, shared by the n sequences; empty if unrequested."""
    finish_reason: FinishReason | None = None
    """`length`: max_tokens is 0, and nothing follows."""
    embedding: bytes | None = None
    """The prompt's vector as little-endian float32, if requested."""


StreamEvent = TokenEvent | PromptEvent


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillProgress:
    """Prompt tokens computed so far, and their total, over the requests of one stream."""

    num_computed_tokens: int
    num_prompt_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassStats:
    """Counters of the requests of one class."""

    priority: Priority
    num_waiting: int = 0
    num_prefilling: int = 0
    num_running: int = 0
    num_pauses: int = 0
    """Times that a sequence left so that requests of a more urgent class could go on, or begin."""
    num_output_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """A snapshot of the engine's counters."""

    num_waiting: int = 0
    num_prefilling: int = 0
    num_running: int = 0
    num_steps: int = 0
    num_stalls: int = 0
    """Pauses of running sequences that were longer than `scheduler.max_stall_s`."""
    stall_s: float = 0.0
    """The longest pause promised now: `scheduler.max_stall_s`, or more if decode steps are slow."""
    num_finished: int = 0
    num_aborted: int = 0
    num_failed: int = 0
    num_preemptions: int = 0
    """Times that a sequence left so that older ones could continue; what is not cached of it is computed again."""
    num_recomputed_tokens: int = 0
    kv_bytes: int = 0
    """Bytes held by the KV caches of live sequences."""
    planned_bytes: int = 0
    """Bytes that live sequences are expected to reach, the limit at most: the basis of admission."""
    active_bytes: int = 0
    """Bytes that the device has allocated now, including weights."""
    peak_bytes: int = 0
    """Peak of `active_bytes`."""
    prefix_cache: PrefixCacheStats = field(default_factory=PrefixCacheStats)
    speculation: SpeculationStats = field(default_factory=SpeculationStats)
    classes: tuple[ClassStats, ...] = field(default_factory=lambda: tuple(ClassStats(priority=p) for p in PRIORITIES))
    """Statistics of each class of requests, in the order of `PRIORITIES`."""
    ranks: tuple[RankStats, ...] = ()
    """In their order; empty if one process has the whole model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineHealth:
    """`stalled`: work waits and no step finished for `health.stall_s`."""

    status: Literal["loading", "ok", "stalled", "dead"]
    detail: str = ""
    load: LoadProgress = field(default_factory=LoadProgress)


class TokenStream(Protocol):
    """The events of one or more requests, read on the event loop that submitted them.

    Iterating yields events that arrived since the last read, in order, some at a time; it ends when every sequence
    has finished, and raises EngineError when the engine failed them.
    """

    def __aiter__(self) -> AsyncIterator[tuple[StreamEvent, ...]]: ...

    def abort(self, index: int) -> None:
        """Give up one sequence; no event of it follows."""

    def finish(self, index: int) -> None:
        """Finish one sequence on behalf of its reader; no event of it follows."""

    async def aclose(self) -> None:
        """Give up every sequence that has not finished. Idempotent."""

    @property
    def progress(self) -> PrefillProgress: ...

    @property
    def num_cached_tokens(self) -> int:
        """Prompt tokens taken from the prefix cache, over all requests."""

    @property
    def drafted(self) -> DraftedTokens:
        """Drafted and verified tokens, over all requests."""

    @property
    def queue_time_s(self) -> float | None:
        """Seconds until the scheduler admitted the first request; None while it waits."""


class Engine(Protocol):
    """The server's interface to the engine. Any thread may call it, unless stated otherwise."""

    def start(self) -> None:
        """Start the device thread, which loads the model. Returns at once."""

    def submit(self, requests: Sequence[GenerationRequest]) -> TokenStream:
        """Queue the requests. Called on a running event loop, to which the stream then belongs.

        Raises EngineNotReady, EngineDead, QueueFull, ContextLengthExceeded.
        """

    def wait_loaded(self) -> None:
        """Return when loading has ended: the model is loaded, has failed, or the engine is closed. Blocks."""

    @property
    def model_info(self) -> ModelInfo | None:
        """None until the model has loaded."""

    def stats(self) -> EngineStats: ...

    def health(self) -> EngineHealth: ...

    @property
    def failure(self) -> BaseException | None:
        """Error that ended the device thread: a ModelLoadError while loading, any other later."""

    def load_adapter(self, adapter: AdapterConfig) -> Future[ModelInfo]:
        """Hold one more adapter. Reads its files, and returns what will be known of the model when it is there.

        Raises, or fails with, AdapterRefused, NoRoomForAdapter, EngineDead; then nothing has changed. Raises
        EngineNotReady.
        """

    def unload_adapter(self, name: str) -> Future[ModelInfo]:
        """Let go of an adapter when its last request has ended. It takes no new ones from now on.

        Raises UnknownAdapter, AdapterRefused, EngineDead, EngineNotReady.
        """

    def on_death(self, callback: Callable[[], None]) -> None:
        """Set `callback`, called from the device thread when that thread dies of an error."""

    def close(self, timeout_s: float = 10.0) -> None:
        """End the device thread; waiting streams fail with EngineDead. Idempotent."""
