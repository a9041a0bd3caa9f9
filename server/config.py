"""The configuration: declared once as frozen dataclasses, resolved once from file < environment < flags.

Flags, variables, `pippin config` and the help all come from `fields()`. Independent of typer, HTTP and the
engine's work; the engine's sections are declared in `mlx_backend.api.interface`.
"""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mlx_backend.api.interface import (
    AdapterConfig,
    ContextConfig,
    DebugConfig,
    EngineConfig,
    HealthConfig,
    KVCacheConfig,
    MemoryConfig,
    MockConfig,
    PrefixCacheConfig,
    RanksConfig,
    SchedulerConfig,
    SimulateConfig,
    SpeculationConfig,
)
from mlx_backend.api.options import OptionError, check_options, option
from server.config_models import KEY as MODELS_KEY
from server.config_models import ModelEntry, as_written, read_models
from server.config_sources import (
    FILE_VARIABLE,
    ConfigError,
    Field,
    Given,
    declared_fields,
    from_environment,
    from_file,
    from_flags,
    read,
)
from server.profiles import settings_file
from server.request_defaults import KEY as DEFAULTS_KEY
from server.request_defaults import RequestDefaults, read_defaults

__all__ = ["Config", "ConfigError", "Field", "Resolved", "engine_config", "fields", "resolve", "sections", "value_of"]

Backend = Literal["mlx", "mock"]
LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["console", "json"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SecurityConfig:
    """Access control, and limits for each client."""

    keys_file: str | None = option(None, "file of API keys written by `pippin keys`; none: no key is required")
    allow_open: bool = option(False, "allow other machines to use the server without a key")
    open_metrics: bool = option(False, "serve /metrics without a key")
    allowed_hosts: str | None = option(
        None, "host names allowed in requests beside the server's address, comma-separated; *: any"
    )
    cors_origins: str | None = option(
        None, "web origins allowed to use the server, such as https://a.example, comma-separated; *: any"
    )
    local_origins: bool = option(
        True, "allow /v1 to pages served from the client's own machine, to apps and to browser extensions"
    )
    requests_per_minute: int | None = option(None, "limit for keys without one in the keys file; none: no limit", ge=1)
    tokens_per_minute: int | None = option(
        None, "prompt + output limit for keys without one in the file; none: no limit", ge=1
    )
    share_prefix_cache: bool = option(False, "share the prefix cache between keys; otherwise each key has its own")
    max_body_bytes: int = option(16 * 1024 * 1024, "maximum request body, bytes; larger ones get a 413", ge=1)
    max_bodies_bytes: int = option(
        128 * 1024 * 1024, "maximum size of all request bodies in progress, bytes; requests beyond it get a 503", ge=1
    )
    max_json_depth: int = option(128, "maximum nesting depth of a JSON body", ge=1)
    max_json_items: int = option(
        100_000, "maximum strings, lists and objects in a JSON body; numbers may be 20 times as many", ge=1
    )
    max_headers: int = option(100, "maximum number of headers in a request", ge=1)
    max_header_bytes: int = option(32 * 1024, "maximum size of a request's path and headers, bytes", ge=1)
    max_connections: int = option(4096, "maximum open connections; a few more get a 503, except for /health", ge=1)
    read_timeout_s: float = option(30.0, "time to receive a request's headers, and then its body, seconds", gt=0)
    send_timeout_s: float = option(60.0, "time after which a client that reads nothing is disconnected, seconds", gt=0)

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamConfig:
    """Streamed responses."""

    keep_alive_s: float = option(5.0, "interval of keep-alive comments on a silent stream, seconds", gt=0)
    drain_s: float = option(30.0, "time that running requests may take to finish after SIGTERM, seconds", ge=0)

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiConfig:
    """API details on which clients differ."""

    thoughts_field: Literal["reasoning_content", "reasoning", "both", "none"] = option(
        "reasoning_content", "field of a chat answer that contains the reasoning; none: omit it"
    )

    volatile_lines: Literal["move", "keep"] = option(
        "move",
        "clocks and counters in system prompts, which prevent prefix matches: move after the last message, or keep",
    )

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponsesConfig:
    """Responses of /v1/responses kept in memory, so that a later request can continue from them."""

    max_stored: int = option(1000, "maximum number of stored responses, newest kept; 0: store none", ge=0)
    max_stored_mb: float = option(64.0, "maximum size of all stored responses and their inputs, MB", ge=0)

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchesConfig:
    """Batches of requests, computed when there is capacity: /v1/files and /v1/batches."""

    dir: str | None = option(
        None, "folder for clients' files and batches, which survive a restart; none: /v1/files and /v1/batches are off"
    )
    max_gb: float = option(20.0, "maximum size of all files, GB; one key may use half of it", gt=0)
    max_file_mb: float = option(2048.0, "maximum size of an uploaded file, MB; larger ones get a 413", gt=0)
    max_files: int = option(2000, "maximum number of files, and of batches; one key may have half of them", ge=1)
    max_lines: int = option(200_000, "maximum number of requests in a batch", ge=1)
    max_in_flight: int = option(8, "maximum batch requests in progress at once", ge=1)
    keep_days: float = option(30.0, "days after which files and batches are deleted", gt=0)

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class GrammarConfig:
    """Grammars for structured output: schemas, regular expressions, choices. Each is compiled in its own process."""

    compile_s: float = option(5.0, "maximum CPU time to compile one grammar, seconds", gt=0)
    memory_gb: float | None = option(
        None,
        "memory for all grammars of a model, GB; one may use a third; none: a quarter of memory.reserve_gb, "
        "0.1 to 1 GB",
        ge=0.1,
    )

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceConfig:
    """Effects on the machine that runs the server."""

    keep_awake: Literal["auto", "never"] = option(
        "auto", "prevent the machine from sleeping while requests run (macOS, with caffeinate)"
    )

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResidencyConfig:
    """Loading and unloading of models."""

    keep_alive_s: float | None = option(
        None, "idle time after which an unpinned model is unloaded, seconds; none: only when memory is needed", gt=0
    )
    load_wait_s: float = option(600.0, "time a request waits for its model to load, seconds; then a 503", gt=0)
    verify: Literal["first", "always", "never"] = option(
        "first", "compare a model's files with their published SHA-256 before loading; first: only new files"
    )

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """All settings. A nested dataclass is a section."""

    model: str | None = option(None, "folder or hub id of an MLX model")
    aliases: str | None = option(
        None, "other names of the model, comma-separated; * matches any characters, as in claude-*"
    )
    adapters: str | None = option(
        None, "LoRA adapters of the model, NAME=FOLDER, comma-separated; requests select one as MODEL:NAME"
    )
    adapters_folder: str | None = option(
        None, "folder of adapter folders that an admin may load at run time; none: only configured adapters"
    )
    backend: Backend = option("mlx", "compute backend; mock needs no model and no MLX")
    host: str = option("127.0.0.1", "address to listen on")
    port: int = option(8080, "port to listen on; 0: any free port", ge=0)
    log_level: LogLevel = option("info", "minimum severity of log lines")
    log_format: LogFormat = option("console", "log format: readable lines, or one JSON object per line")
    log_prompts: bool = option(False, "include clients' prompts in the log")
    log_file: str | None = option(
        None, "file to append the log to; external rotation is supported; none: standard error"
    )
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    context: ContextConfig = field(default_factory=ContextConfig)
    kv_cache: KVCacheConfig = field(default_factory=KVCacheConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    ranks: RanksConfig = field(default_factory=RanksConfig)
    prefix_cache: PrefixCacheConfig = field(default_factory=PrefixCacheConfig)
    speculation: SpeculationConfig = field(default_factory=SpeculationConfig)
    residency: ResidencyConfig = field(default_factory=ResidencyConfig)
    health: HealthConfig = field(default_factory=HealthConfig)
    security: SecurityConfig = field(default_factory=SecurityConfig)
    stream: StreamConfig = field(default_factory=StreamConfig)
    api: ApiConfig = field(default_factory=ApiConfig)
    responses: ResponsesConfig = field(default_factory=ResponsesConfig)
    batches: BatchesConfig = field(default_factory=BatchesConfig)
    grammars: GrammarConfig = field(default_factory=GrammarConfig)
    service: ServiceConfig = field(default_factory=ServiceConfig)
    mock: MockConfig = field(default_factory=MockConfig)
    simulate: SimulateConfig = field(default_factory=SimulateConfig)
    debug: DebugConfig = field(default_factory=DebugConfig)

    defaults: RequestDefaults = field(default_factory=RequestDefaults)
    """Defaults for requests to the one model; from the file only."""
    models: tuple[ModelEntry, ...] = ()
    """Several models, from the file only; then `model` is not set."""

    def __post_init__(self) -> None:
        check_options(self)
        if self.port > 65535:
            raise OptionError("port", f"must be at most 65535, not {self.port}")
        for name in ("model", "aliases", "adapters"):
            if self.models and getattr(self, name) is not None:
                raise OptionError(name, f"{getattr(self, name)!r} applies only to a server of one model; use models")
        if self.models and self.defaults != RequestDefaults():
            raise ValueError("defaults apply only to a server of one model; move them into models")
        if self.models and self.debug.record is not None:
            raise ValueError("debug.record applies only to a server of one model; leave models or debug.record unset")
        if self.ranks.is_one_model_in_parts and (self.models or self.residency.keep_alive_s is not None):
            raise ValueError(
                "ranks.count needs a single model that stays loaded; leave models and residency.keep_alive_s unset"
            )
        for entry in self.models:
            with_own(self, entry)


class CurrentConfig:
    """The current configuration. A reload replaces it, so read settings that may change when they are needed."""

    def __init__(self, config: Config) -> None:
        self.now = config


@dataclass(frozen=True, slots=True)
class Resolved:
    """A configuration, and the source of each value by dotted key."""

    config: Config
    origins: Mapping[str, str]
    again: Callable[[], Resolved]
    """Function that resolves the same sources again. Raises ConfigError."""


@functools.cache
def fields() -> tuple[Field, ...]:
    """Return all declared fields: the top level first, then section by section, in the order of declaration."""
    found = list(declared_fields(Config, "", MODELS_KEY))
    for name, section in sections().items():
        found += declared_fields(section, name)
    return tuple(found)


@functools.cache
def sections() -> Mapping[str, type]:
    """Return the sections by name, in the order of declaration."""
    hints = typing.get_type_hints(Config)
    classes = {name: hint for name, hint in hints.items() if isinstance(hint, type) and name != DEFAULTS_KEY}
    return {name: hint for name, hint in classes.items() if dataclasses.is_dataclass(hint)}


def resolve(file: Path | None, environ: Mapping[str, str], flags: Mapping[str, str | None]) -> Resolved:
    """Return the configuration of defaults < YAML file < environment < flags.

    `flags` has dotted keys; None is a flag not given. Without `file`, the variable PIPPIN_CONFIG may name one. Both may
    name shipped settings.
    Raises ConfigError.
    """
    if file is None and FILE_VARIABLE in environ:
        if not environ[FILE_VARIABLE]:
            raise ConfigError(f"environment {FILE_VARIABLE} is empty; set it to a file or unset it")
        file = Path(environ[FILE_VARIABLE])
    if file is not None:
        file = settings_file(file)
    given: dict[str, Given] = {
        **(from_file(file, fields(), (MODELS_KEY, DEFAULTS_KEY)) if file else {}),
        **from_environment(environ, fields()),
        **from_flags(flags, fields()),
    }
    origins = {f.key: given[f.key].origin if f.key in given else "default" for f in fields()}
    values = {f.key: read(f, given[f.key]) for f in fields() if f.key in given}
    models: tuple[ModelEntry, ...] = ()
    if MODELS_KEY in given:
        models = read_models(given[MODELS_KEY], fields())
        origins[MODELS_KEY] = given[MODELS_KEY].origin
    defaults = RequestDefaults()
    if DEFAULTS_KEY in given and given[DEFAULTS_KEY].value is not None:
        defaults = read_defaults(given[DEFAULTS_KEY].value, f"{given[DEFAULTS_KEY].origin}: {DEFAULTS_KEY}")
        origins[DEFAULTS_KEY] = given[DEFAULTS_KEY].origin
    return Resolved(
        _build(values, origins, models, defaults), origins, functools.partial(resolve, file, environ, flags)
    )


def with_own(config: Config, entry: ModelEntry) -> Config:
    """Return the configuration of one of several models. Raises ValueError."""
    changes: dict[str, dict[str, Any]] = {}
    for key, value in entry.own.items():
        section, _, name = key.partition(".")
        changes.setdefault(section, {})[name] = value
    try:
        sections = {name: dataclasses.replace(getattr(config, name), **own) for name, own in changes.items()}
    except ValueError as error:
        raise ValueError(f"models.{entry.name}: {error}") from None
    return dataclasses.replace(config, model=entry.model, models=(), aliases=None, adapters=None, **sections)


def engine_config(config: Config, model_path: str, adapters: tuple[AdapterConfig, ...] = ()) -> EngineConfig:
    """Return the engine's part of `config`, with the model's folder and its adapters."""
    shared = [f.name for f in dataclasses.fields(EngineConfig) if f.name in sections() or f.name == "backend"]
    return EngineConfig(model_path=model_path, adapters=adapters, **{name: getattr(config, name) for name in shared})


def value_of(config: Config, key: str) -> Any:
    """Return the value at a dotted key; for `models`, the entries in the form of a configuration file."""
    if key == MODELS_KEY:
        return {entry.name: as_written(entry) for entry in config.models}
    if key == DEFAULTS_KEY:
        return config.defaults.as_written()
    return functools.reduce(getattr, key.split("."), config)


def _build(
    values: Mapping[str, Any], origins: Mapping[str, str], models: tuple[ModelEntry, ...], defaults: RequestDefaults
) -> Config:
    built = {name: _build_one(section, name, values, origins) for name, section in sections().items()}
    config: Config = _build_one(Config, "", values, origins, models=models, defaults=defaults, **built)
    return config


def _build_one(owner: type, section: str, values: Mapping[str, Any], origins: Mapping[str, str], **more: Any) -> Any:
    """Return an instance of `owner`. Raises ConfigError, which names the source of an invalid field."""
    declared = {f.name: f for f in fields() if f.section == section}
    mine = {name: values[f.key] for name, f in declared.items() if f.key in values}
    try:
        return owner(**mine, **more)
    except OptionError as error:
        key = declared[error.field].key
        raise ConfigError(f"{origins[key]}: {key} {error.problem}") from None
    except ValueError as error:
        raise ConfigError(f"{section}: {error}" if section else str(error)) from None
