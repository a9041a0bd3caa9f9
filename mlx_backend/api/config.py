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
    """Who computes when."""

    max_num_seqs: int = option(32, "sequences that decode together, at most", ge=1)
    max_waiting: int = option(1024, "requests that may wait for a place; one more is answered 503", ge=1)
    max_stall_s: float = option(0.25, "longest a running stream may wait for somebody's prefill, seconds", gt=0)
    max_chunk_s: float = option(
        2.0, "longest prefill chunk while nothing decodes, seconds: an abort waits for it; macOS ends 5 s", gt=0
    )
    max_chunk_tokens: int = option(2048, "tokens of one prefill chunk, at most", ge=1)
    batch_share: float = option(
        0.05, "time that requests of class batch may add to what the others take, as a share of it", ge=0.01
    )

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextConfig:
    """How long prompt and output may be together."""

    limit: int | None = option(None, "prompt + output ceiling, tokens; none: the model's own", ge=1)
    on_overflow: Literal["error", "truncate_oldest"] = option(
        "error", "a chat that is too long: 400, or its oldest turns go (header and usage say how many tokens)"
    )
    on_max_tokens: Literal["fit", "error"] = option(
        "fit", "max_tokens above the room that is left, or -1: as many as fit (a header says so), or 400"
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
                raise OptionError(name, "says how a quantized cache is held; set bits too, or leave it unset")

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
        "keep the weights from being paged out (macOS); auto: from 4 GB on, where that is safe; docs/memory.md",
    )
    max_ops_per_buffer: int | None = option(
        None, "operations that MLX puts into one Metal command buffer, at most; none: MLX chooses by the chip", ge=1
    )
    max_mb_per_buffer: int | None = option(
        None, "data of one Metal command buffer, MB, at most; more holds more memory; none: MLX chooses", ge=1
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
    """One model, shared by several processes."""

    count: int = option(
        1, "processes on this machine that hold a part of the model each; 1: one has it all", ge=1, short_flag="--ranks"
    )
    parallel: Parallel = option(
        "tensor", "what a part is: a share of every layer, or some of the layers", short_flag="--parallel"
    )
    split: str | None = option(
        None, "layers of each of a pipeline's ranks, rank 0 first, as 31,30; none: even", short_flag="--split"
    )
    hostfile: str | None = option(
        None,
        "MLX's file of the machines, rank 0's first; this process is rank 0; none: all ranks are on this machine",
        short_flag="--hostfile",
    )
    key: str | None = option(
        None, "@FILE of the key by which the machines of a hostfile know each other", short_flag="--key"
    )
    port: int = option(
        7400, "port at which rank 0 waits for the machines of a hostfile; the next one is for MLX's own messages", ge=1
    )
    join_s: float = option(120.0, "ranks that have not joined by then end the server, seconds", gt=0)

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
    """What is kept of prompts and answers, so that it is not computed again."""

    enabled: bool = option(True, "keep what was computed, and take it where a prompt begins alike")
    ram_gb: float | None = option(
        None,
        "memory for it, GB; running requests come first; none: half of what the weights leave",
        ge=0,
    )
    dir: str | None = option(None, "folder on an SSD where it survives a restart; none: memory only")
    max_bytes: int = option(50_000_000_000, "most that the folder may hold, bytes", ge=0)
    chunk_tokens: int = option(64, "tokens of a block, the unit that is stored and shared", ge=1)
    snapshot_tokens: int = option(
        1024, "for state that cannot be cut (sliding windows, recurrent): a snapshot every so many tokens", ge=1
    )
    next_turn: bool = option(
        True,
        "where a chat's next prompt leaves thoughts out, compute its known beginning while nothing else is asked",
    )

    def __post_init__(self) -> None:
        check_options(self)

    @property
    def ram_bytes(self) -> int | None:
        return _bytes(self.ram_gb)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeculationConfig:
    """Tokens that are guessed and verified several at a time (speculative decoding): answers stay the same."""

    kind: Literal["off", "ngram", "draft-model"] = option(
        "off",
        "where guesses come from; ngram: earlier text of the same prompt and answer; draft-model: a smaller model",
        short_flag="--speculation",
    )
    draft_model: str | None = option(
        None,
        "folder or hub id of the smaller model of kind draft-model; its vocabulary must be the model's",
        short_flag="--draft-model",
    )
    max_tokens: int = option(8, "guesses that one step verifies for a request, at most", ge=1)
    max_slowdown: float = option(
        0.01, "share of its time that guesses which do not pay may cost a request, at most", ge=0
    )

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
    """When the server calls itself unhealthy."""

    stall_s: float = option(60.0, "unhealthy when work waits and no step finished for so long, seconds", gt=0)

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class MockConfig:
    """The pace and the faults of the mock backend, and what it writes."""

    load_s: float = option(0.0, "time that loading takes, seconds", ge=0)
    ttft_s: float = option(0.0, "time of a prefill, however long the prompt, seconds", ge=0)
    itl_s: float = option(0.0, "time of one decode step, seconds", ge=0)
    context: int = option(4096, "the mock model's own context length, tokens", ge=8)
    script: str | None = option(
        None, 'file of lines {"match": REGEX, "text": TEXT}: what it writes where the last message matches'
    )
    tokenizer: str | None = option(
        None, "folder of a model whose tokenizer, template and end tokens it has; no weights"
    )
    draft_share: float = option(
        1.0, "share of the tokens of its draft model that are what it writes, with speculation.kind draft-model", ge=0
    )
    fault: str | None = option(None, "KIND@STEP or KIND/STEPS (every so many), KIND one of fail, oom, hang, die")

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulateConfig:
    """A machine whose pace and memory the mock backend has, as the planner predicts them."""

    machine: str | None = option(
        None, "machine to simulate, such as m3-ultra-512 (pippin plan --machines)", short_flag="--simulate"
    )
    model: str | None = option(
        None, "model that it serves: such as deepseek-r1, a profile, a folder, a config.json", short_flag="--as"
    )
    speed: float = option(1.0, "times as fast as predicted", gt=0)
    disk_gb_s: float | None = option(
        None, "what its disk reads, GB per second, for the time of loading; none: mock.load_s", gt=0
    )

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class DebugConfig:
    """Tools for finding out what went wrong."""

    record: str | None = option(
        None, "file to record every step of the engine in, token ids included, to be replayed", short_flag="--record"
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
