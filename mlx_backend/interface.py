"""Every type that crosses between the server and the engine: configuration, request, events, state.

Plain frozen dataclasses. No MLX, no pydantic, nothing of HTTP or text.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from mlx_backend.options import check_options, option

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """Who computes when."""

    max_num_seqs: int = option(32, "sequences that decode together, at most", ge=1)
    max_waiting: int = option(1024, "requests that may wait for a place; one more is answered 503", ge=1)
    max_stall_s: float = option(0.25, "longest a running stream may wait for somebody's prefill, seconds", gt=0)
    max_chunk_tokens: int = option(2048, "tokens of one prefill chunk, at most", ge=1)

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextConfig:
    """How long prompt and output may be together."""

    limit: int | None = option(None, "prompt + output ceiling, tokens; none: the model's own", ge=1)
    on_overflow: Literal["error", "truncate_oldest"] = option(
        "error", "a chat that is too long: 400, or its oldest turns go (header and usage say how many tokens)"
    )

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class KVCacheConfig:
    """How keys and values are held."""

    bits: int | None = option(
        None, "bits of quantized keys and values; none: the model's precision", choices=(4, 5, 6, 8)
    )
    key_bits: int | None = option(None, "bits of keys, where they differ from kv_cache.bits", choices=(4, 5, 6, 8))
    value_bits: int | None = option(None, "bits of values, where they differ from kv_cache.bits", choices=(4, 5, 6, 8))
    group_size: int | None = option(
        None, "numbers that share a scale in a quantized cache; none: 64", choices=(32, 64, 128)
    )
    start: int | None = option(
        None, "first tokens of every sequence that stay in full precision in a quantized cache; none: 0", ge=0
    )

    def __post_init__(self) -> None:
        check_options(self)
        for name in ("group_size", "start"):
            if getattr(self, name) is not None and not self.is_quantized:
                raise ValueError(f"{name} says how a quantized cache is held; set bits too, or leave it unset")

    @property
    def is_quantized(self) -> bool:
        return self.effective_key_bits is not None or self.effective_value_bits is not None

    @property
    def effective_key_bits(self) -> int | None:
        return self.bits if self.key_bits is None else self.key_bits

    @property
    def effective_value_bits(self) -> int | None:
        return self.bits if self.value_bits is None else self.value_bits

    @property
    def effective_group_size(self) -> int:
        return 64 if self.group_size is None else self.group_size


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryConfig:
    """How much memory may be used, in GB (1e9 bytes)."""

    limit_gb: float | None = option(
        None, "memory for weights, KV caches and computing; none: what the system lets the device have", gt=0
    )
    reserve_gb: float | None = option(None, "of the limit, what stays unused; none: a tenth, at most 3 GB", ge=0)
    cache_gb: float | None = option(
        None, "freed buffers that MLX keeps for reuse; none: a quarter of what the weights leave, at most 4 GB", ge=0
    )
    wired: Literal["auto", "never", "always"] = option(
        "auto",
        "keep memory from being paged out (macOS); auto: weights over 55 % of it, then one sequence at a time",
    )

    def __post_init__(self) -> None:
        check_options(self)

    @property
    def limit_bytes(self) -> int | None:
        return _bytes(self.limit_gb)

    @property
    def reserve_bytes(self) -> int | None:
        return _bytes(self.reserve_gb)

    @property
    def cache_bytes(self) -> int | None:
        return _bytes(self.cache_gb)


def _bytes(gigabytes: float | None) -> int | None:
    return None if gigabytes is None else round(gigabytes * 1e9)


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthConfig:
    """When the server calls itself unhealthy."""

    stall_s: float = option(60.0, "unhealthy when work waits and no step finished for so long, seconds", gt=0)

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class MockConfig:
    """The pace and the faults of the mock backend."""

    load_s: float = option(0.0, "time that loading takes, seconds", ge=0)
    ttft_s: float = option(0.0, "time of a prefill, however long the prompt, seconds", ge=0)
    itl_s: float = option(0.0, "time of one decode step, seconds", ge=0)
    context: int = option(4096, "the mock model's own context length, tokens", ge=8)
    fault: str | None = option(None, "KIND@STEP or KIND/STEPS (every so many), KIND one of fail, oom, hang, die")

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """What the engine is told: a model folder that exists (or `mock`), and its sections."""

    model_path: str
    backend: Literal["mlx", "mock"] = "mlx"
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    context: ContextConfig = field(default_factory=ContextConfig)
    kv_cache: KVCacheConfig = field(default_factory=KVCacheConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    health: HealthConfig = field(default_factory=HealthConfig)
    mock: MockConfig = field(default_factory=MockConfig)


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How the next token is chosen. Neutral values switch a filter off; `temperature` 0 is greedy."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None
    num_logprobs: int | None = None
    """None: no log-probabilities; k >= 0: the chosen token's and the k most likely ones'."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One prompt and the n continuations wanted of it."""

    request_id: str
    prompt_ids: tuple[int, ...]
    max_tokens: int
    n: int = 1
    sampling: SamplingParams = field(default_factory=SamplingParams)
    stop_ids: frozenset[int] = frozenset()
    """Tokens that end a sequence with `stop`; empty to ignore the end-of-sequence token."""


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Natural logarithms under the model's own distribution, before any filter, penalty or temperature."""

    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    """(token id, log-probability), most likely first."""


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One token of one sequence. `index` counts over the stream: request by request, n of each."""

    index: int
    token_id: int
    logprobs: TokenLogprobs | None = None
    finish_reason: FinishReason | None = None
    """`stop`: token_id is one of stop_ids. `length`: the token is the last that max_tokens allows."""


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
class ModelInfo:
    """What is known of a loaded model."""

    context_limit: int
    """The effective limit, tokens: the smallest of the model's own, the configured one and what fits into memory."""
    context_limited_by: Literal["model", "configuration", "memory"] = "model"
    vocab_size: int
    num_parameters: int = 0
    weights_bytes: int = 0
    is_batched: bool = True
    unbatched_reason: str | None = None
    """Why sequences are served one at a time, where they are."""
    kv_caches: tuple[KVCacheReport, ...] = ()
    memory: MemoryReport | None = None
    """None where nothing bounds it."""
    dequantized_reason: str | None = None
    """Why attention gets a dequantized copy of every layer's keys and values in every step, where it does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadProgress:
    """Bytes of weights read so far, of all that will be read."""

    done_bytes: int = 0
    total_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillProgress:
    """Prompt tokens computed so far, of all, over the requests of one stream."""

    num_computed_tokens: int
    num_prompt_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """A snapshot of the engine's counters."""

    num_waiting: int = 0
    num_prefilling: int = 0
    num_running: int = 0
    num_steps: int = 0
    num_finished: int = 0
    num_aborted: int = 0
    num_failed: int = 0
    kv_bytes: int = 0
    """Bytes held by the KV caches of live sequences."""
    planned_bytes: int = 0
    """Bytes that live sequences may come to need, KV caches and computing: what admission counts with."""
    active_bytes: int = 0
    """Bytes that the device has allocated now, weights among them."""
    peak_bytes: int = 0
    """The most it has had allocated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineHealth:
    """`stalled`: work waits and no step finished for `health.stall_s`."""

    status: Literal["loading", "ok", "stalled", "dead"]
    detail: str = ""
    load: LoadProgress = field(default_factory=LoadProgress)


class TokenStream(Protocol):
    """The tokens of one or more requests, read on the event loop that submitted them.

    Iterating yields all events that arrived since the last read, in order; it ends when every sequence
    has finished, and raises EngineError when the engine failed them.
    """

    def __aiter__(self) -> AsyncIterator[tuple[TokenEvent, ...]]: ...

    def abort(self, index: int) -> None:
        """Give up one sequence; no event of it follows."""

    async def aclose(self) -> None:
        """Give up every sequence that has not finished. Idempotent."""

    @property
    def progress(self) -> PrefillProgress: ...

    @property
    def num_cached_tokens(self) -> int:
        """Prompt tokens that were not computed because they were known, over all requests."""


class Engine(Protocol):
    """What the server talks to. Any thread may call it, unless said otherwise."""

    def start(self) -> None:
        """Start the device thread, which loads the model. Returns at once."""

    def submit(self, requests: Sequence[GenerationRequest]) -> TokenStream:
        """Queue the requests. Called on a running event loop, to which the stream then belongs.

        Raises EngineNotReady, EngineDead, QueueFull, ContextLengthExceeded.
        """

    @property
    def model_info(self) -> ModelInfo | None:
        """None until the model has loaded."""

    def stats(self) -> EngineStats: ...

    def health(self) -> EngineHealth: ...

    @property
    def failure(self) -> BaseException | None:
        """What the device thread died of: a ModelLoadError while loading, anything else later."""

    def on_death(self, callback: Callable[[], None]) -> None:
        """Have `callback` called, from the device thread, when that thread dies of an error."""

    def close(self, timeout_s: float = 10.0) -> None:
        """End the device thread; waiting streams fail with EngineDead. Idempotent."""
