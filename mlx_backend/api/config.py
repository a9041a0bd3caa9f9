"""The engine's part of the configuration, one class per section: each field with its default, help and bounds.

Reads nothing: the server fills the fields in. No MLX.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from mlx_backend.api.hosts import RankHosts
from mlx_backend.api.options import OptionError, check_options, option

Parallel = Literal["tensor", "pipeline"]

MOST_DRAFT_TOKENS = 15
"""Most drafts per row: with the newest token, as many as attention takes without expanding a quantized KV cache."""
LARGEST_PER_BUFFER = 1_000_000
"""Most operations, or MB, per command buffer: effectively no limit, and well within the integers that MLX reads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """Scheduling of prefill and decode."""

    max_num_seqs: int = option(32, "maximum number of sequences decoded together", ge=1)
    max_waiting: int = option(1024, "maximum number of waiting requests; further ones get a 503", ge=1)
    max_stall_s: float = option(
        0.25, "longest time a running stream waits for another request's prefill, seconds", gt=0
    )
    max_chunk_s: float = option(
        2.0, "longest prefill chunk while nothing decodes, seconds; aborts wait for it, and macOS stops it at 5 s", gt=0
    )
    max_chunk_tokens: int = option(2048, "maximum tokens in one prefill chunk", ge=1)
    batch_share: float = option(
        0.05, "maximum share by which requests of class batch may slow down the others", ge=0.01
    )

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextConfig:
    """Length of prompt and output together."""

    limit: int | None = option(None, "maximum prompt + output, tokens; none: the model's context length", ge=1)
    on_overflow: Literal["error", "truncate_oldest"] = option(
        "error", "for a chat that is too long: return a 400, or drop the oldest turns (reported in a header and usage)"
    )
    on_max_tokens: Literal["fit", "error"] = option(
        "fit",
        "for max_tokens of -1 or above the remaining context: reduce it (reported in a header), or return a 400",
    )

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class KVCacheConfig:
    """Precision of the KV cache."""

    bits: int | None = option(
        None, "bits per key and value in a quantized cache; none: the model's precision", choices=(4, 5, 6, 8)
    )
    key_bits: int | None = option(
        None, "bits per key, if different from kv_cache.bits; none: kv_cache.bits", choices=(4, 5, 6, 8)
    )
    value_bits: int | None = option(
        None, "bits per value, if different from kv_cache.bits; none: kv_cache.bits", choices=(4, 5, 6, 8)
    )
    group_size: int | None = option(
        None, "group size of a quantized cache: numbers that share a scale; none: 64", choices=(32, 64, 128)
    )
    start: int | None = option(
        None, "leading tokens of a sequence kept in full precision in a quantized cache; none: 0", ge=0
    )

    def __post_init__(self) -> None:
        check_options(self)
        for name in ("group_size", "start"):
            if getattr(self, name) is not None and not self.is_quantized:
                raise OptionError(name, "applies only to a quantized cache; set kv_cache.bits too, or leave it unset")

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
    """Memory limits, in GB (1e9 bytes)."""

    limit_gb: float | None = option(
        None, "memory for weights, KV caches and computation, GB; none: the system's limit for the device", gt=0
    )
    reserve_gb: float | None = option(
        None, "part of the limit left unused, GB; none: a tenth of the limit, at most 3 GB", ge=0
    )
    cache_gb: float | None = option(
        None,
        "freed buffers that MLX keeps for reuse, GB; none: a quarter of the memory left by the weights, at most 4 GB",
        ge=0,
    )
    wired: Literal["auto", "never", "always"] = option(
        "auto",
        "prevent macOS from paging out the weights; auto: from 4 GB of weights, where safe (docs/memory.md)",
    )
    max_ops_per_buffer: int | None = option(
        None, "maximum operations in one Metal command buffer; none: MLX's default for the chip", ge=1
    )
    max_mb_per_buffer: int | None = option(
        None, "maximum data of one Metal command buffer, MB; higher values use more memory; none: MLX's default", ge=1
    )

    def __post_init__(self) -> None:
        check_options(self)
        for name in ("max_ops_per_buffer", "max_mb_per_buffer"):
            value = getattr(self, name)
            if value is not None and value > LARGEST_PER_BUFFER:
                raise OptionError(name, f"must be at most {LARGEST_PER_BUFFER}, not {value!r}")

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
class RanksConfig:
    """One model divided among several processes (ranks)."""

    count: int = option(
        1,
        "processes on this machine that each hold a part of the model; 1: one process holds all of it",
        ge=1,
        short_flag="--ranks",
    )
    parallel: Parallel = option(
        "tensor",
        "division of the model: a share of every layer (tensor), or whole layers (pipeline)",
        short_flag="--parallel",
    )
    split: str | None = option(
        None, "layers on each pipeline rank, rank 0 first, such as 31,30; none: an even split", short_flag="--split"
    )
    hostfile: str | None = option(
        None,
        "MLX hostfile that lists the machines, rank 0 (this process) first; none: all ranks are on this machine",
        short_flag="--hostfile",
    )
    key: str | None = option(
        None, "shared secret that authenticates the machines of a hostfile, as @FILE", short_flag="--key"
    )
    port: int = option(
        7400, "port on which rank 0 waits for the machines of a hostfile; MLX itself uses the next one", ge=1
    )
    join_s: float = option(120.0, "time for all ranks to join, seconds; after it the server stops", gt=0)

    def __post_init__(self) -> None:
        check_options(self)
        if self.port > 65534:
            raise OptionError("port", f"must be at most 65534, not {self.port}")

    @property
    def is_one_model_in_parts(self) -> bool:
        """Whether there are several ranks."""
        return self.count > 1 or self.hostfile is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixCacheConfig:
    """Prompts and answers kept for reuse by later prompts that begin the same."""

    enabled: bool = option(True, "reuse the KV cache of earlier prompts and answers when a prompt begins the same")
    ram_gb: float | None = option(
        None,
        "memory for the cache, GB; running requests take precedence; none: half of the memory left by the weights",
        ge=0,
    )
    dir: str | None = option(None, "folder on an SSD where the cache survives a restart; none: memory only")
    max_bytes: int = option(50_000_000_000, "maximum size of the folder, bytes", ge=0)
    chunk_tokens: int = option(64, "tokens in a block, the unit of storage and sharing", ge=1)
    snapshot_tokens: int = option(
        1024, "tokens between snapshots of state that cannot be truncated (sliding windows, recurrent layers)", ge=1
    )
    next_turn: bool = option(
        True,
        "while idle, precompute the known beginning of a chat's next prompt if that prompt omits reasoning",
    )

    def __post_init__(self) -> None:
        check_options(self)

    @property
    def ram_bytes(self) -> int | None:
        return _bytes(self.ram_gb)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeculationConfig:
    """Speculative decoding: draft several tokens and verify them in one step. Answers stay the same."""

    kind: Literal["off", "ngram", "draft-model"] = option(
        "off",
        "source of draft tokens; ngram: earlier text of the same prompt and answer; draft-model: a smaller model",
        short_flag="--speculation",
    )
    draft_model: str | None = option(
        None,
        "folder or hub id of the draft model, for kind draft-model; it needs the model's vocabulary",
        short_flag="--draft-model",
    )
    max_tokens: int = option(8, "maximum draft tokens that one step verifies for a request", ge=1)
    max_slowdown: float = option(0.01, "maximum share of a request's time spent on drafts that do not pay off", ge=0)

    def __post_init__(self) -> None:
        check_options(self)
        if self.max_tokens > MOST_DRAFT_TOKENS:
            raise OptionError("max_tokens", f"must be at most {MOST_DRAFT_TOKENS}, not {self.max_tokens}")
        if self.kind == "draft-model" and not self.draft_model:
            raise OptionError("kind", "draft-model needs speculation.draft_model, a folder or a hub id")
        if self.kind != "draft-model" and self.draft_model is not None:
            raise OptionError("draft_model", f"is for speculation.kind draft-model, not {self.kind}")

    @property
    def max_drafts(self) -> int:
        """Most tokens of a row that a step may verify beside its newest one."""
        return 0 if self.kind == "off" else self.max_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthConfig:
    """Conditions under which the server reports itself unhealthy."""

    stall_s: float = option(
        60.0,
        "time without a finished step while work waits, seconds; after it the server reports itself unhealthy",
        gt=0,
    )

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class MockConfig:
    """Speed, faults and output of the mock backend."""

    load_s: float = option(0.0, "time to load the model, seconds", ge=0)
    ttft_s: float = option(0.0, "time of a prefill, whatever the prompt's length, seconds", ge=0)
    itl_s: float = option(0.0, "time of one decode step, seconds", ge=0)
    context: int = option(4096, "context length of the mock model, tokens", ge=8)
    script: str | None = option(
        None,
        'file of lines {"match": REGEX, "text": TEXT}: the answer when the last message matches; none: made-up text',
    )
    tokenizer: str | None = option(
        None, "model folder to take the tokenizer, template and end tokens from, without weights; none: built in"
    )
    fault: str | None = option(
        None, "fault to inject: KIND@STEP, or KIND/STEPS for one every STEPS steps; KIND is fail, oom, hang or die"
    )
    draft_share: float = option(
        1.0, "share of a draft model's tokens that are right, with speculation.kind draft-model", ge=0
    )

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulateConfig:
    """Simulation of a machine by the mock backend, with the speed and memory that the planner predicts."""

    machine: str | None = option(
        None, "machine to simulate, such as m3-ultra-512 (listed by `pippin plan --machines`)", short_flag="--simulate"
    )
    model: str | None = option(
        None, "model to simulate: a name such as deepseek-r1, a profile, a folder or a config.json", short_flag="--as"
    )
    speed: float = option(1.0, "factor on the predicted speed", gt=0)
    disk_gb_s: float | None = option(
        None, "disk read speed that determines the time to load, GB per second; none: mock.load_s", gt=0
    )

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class DebugConfig:
    """Debugging tools."""

    record: str | None = option(
        None,
        "file that records every engine step, with token ids, for replay; none: no recording",
        short_flag="--record",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryShare:
    """One model's share of the memory of a process with several models, and the total, bytes."""

    share_bytes: int
    process_bytes: int


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """A LoRA adapter of the model: its name in requests, and its folder."""

    name: str
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Configuration of the engine: an existing model folder (or `mock`), and the sections."""

    model_path: str
    backend: Literal["mlx", "mock"] = "mlx"
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    context: ContextConfig = field(default_factory=ContextConfig)
    kv_cache: KVCacheConfig = field(default_factory=KVCacheConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    ranks: RanksConfig = field(default_factory=RanksConfig)
    prefix_cache: PrefixCacheConfig = field(default_factory=PrefixCacheConfig)
    speculation: SpeculationConfig = field(default_factory=SpeculationConfig)
    health: HealthConfig = field(default_factory=HealthConfig)
    mock: MockConfig = field(default_factory=MockConfig)
    simulate: SimulateConfig = field(default_factory=SimulateConfig)
    debug: DebugConfig = field(default_factory=DebugConfig)
    adapters: tuple[AdapterConfig, ...] = ()
    """Adapters that requests may name beside the model itself."""
    share: MemoryShare | None = None
    """None: all memory is for this model."""
    hosts: RankHosts | None = None
    """Machines of the ranks; None: all ranks are on this machine."""
    ranks_here: int = 1
    """Number of the model's ranks on this machine: they share its memory."""
