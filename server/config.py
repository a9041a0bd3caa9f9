"""The configuration: declared once as frozen dataclasses, resolved once from file < environment < flags.

Flags, variables, `pippin config` and the help all come from `fields()`. Knows nothing of typer, HTTP or the
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
    """Who may ask, and what a client may cost."""

    keys_file: str | None = option(None, "file of API keys, as `pippin keys` writes it; none: no key is needed")
    allow_open: bool = option(False, "let others than this machine use the server without a key")
    open_metrics: bool = option(False, "/metrics needs no key")
    allowed_hosts: str | None = option(
        None, "names this server is called by, beside its address, with commas; * is any"
    )
    cors_origins: str | None = option(
        None, "origins whose pages may use it, as https://a.example, with commas; * is any"
    )
    local_origins: bool = option(
        True, "pages that programs on the client's own machine serve, apps and browser extensions may use /v1"
    )
    requests_per_minute: int | None = option(None, "of each key, where its line in the file says nothing", ge=1)
    tokens_per_minute: int | None = option(None, "prompt and output, of each key, where its line says nothing", ge=1)
    share_prefix_cache: bool = option(False, "keys share what is kept of their prompts; else each has its own")
    max_body_bytes: int = option(16 * 1024 * 1024, "largest request body, bytes; a larger one is answered 413", ge=1)
    max_bodies_bytes: int = option(
        128 * 1024 * 1024, "bodies of all requests in progress, bytes; what comes on top is answered 503", ge=1
    )
    max_json_depth: int = option(128, "brackets of a body that may be open at once", ge=1)
    max_json_items: int = option(
        100_000, "texts, lists and objects in a body, at most; and 20 times as many numbers", ge=1
    )
    max_headers: int = option(100, "headers of a request, at most", ge=1)
    max_header_bytes: int = option(32 * 1024, "size of a request's path and headers, bytes", ge=1)
    max_connections: int = option(4096, "connections at once; a few more are answered 503, but for /health", ge=1)
    read_timeout_s: float = option(30.0, "a request's head, and then its body, must come within so many seconds", gt=0)
    send_timeout_s: float = option(60.0, "a client that reads nothing for so long is closed, seconds", gt=0)

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamConfig:
    """The manners of a streamed answer."""

    keep_alive_s: float = option(5.0, "comment on a silent stream every so many seconds", gt=0)
    drain_s: float = option(30.0, "on SIGTERM, running answers may take so long to end, seconds", ge=0)

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiConfig:
    """Details of the API in which clients differ."""

    thoughts_field: Literal["reasoning_content", "reasoning", "both", "none"] = option(
        "reasoning_content", "field of a chat's answer that has the model's thoughts; none: they are left out"
    )

    volatile_lines: Literal["move", "keep"] = option(
        "move",
        "clocks and counters in system prompts, which spoil the prefix cache: move behind the last message, or keep",
    )

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponsesConfig:
    """Answers of /v1/responses that are kept in memory, so that a later request can go on from them."""

    max_stored: int = option(1000, "responses that are kept, at most; the oldest make room; 0: none", ge=0)
    max_stored_mb: float = option(64.0, "size of all of them together, with what was sent for them, MB", ge=0)

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchesConfig:
    """Files of requests that are answered when there is room: /v1/files and /v1/batches."""

    dir: str | None = option(
        None, "folder of clients' files and batches, which survive a restart; none: /v1/files and /v1/batches are off"
    )
    max_gb: float = option(20.0, "size of all files together, GB; one key may have half of it", gt=0)
    max_file_mb: float = option(2048.0, "size of one file that is uploaded, MB; a larger one is answered 413", gt=0)
    max_files: int = option(2000, "files, and batches as well, at most; one key may have half of them", ge=1)
    max_lines: int = option(200_000, "requests of one batch, at most", ge=1)
    max_in_flight: int = option(8, "requests of all batches that are computed at once", ge=1)
    keep_days: float = option(30.0, "files and batches are deleted after so many days", gt=0)

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class GrammarConfig:
    """Grammars that answers follow: schemas, regular expressions, choices. Each is compiled in its own process."""

    compile_s: float = option(5.0, "processor time that compiling one grammar may take, seconds", gt=0)
    memory_gb: float | None = option(
        None,
        "memory for all grammars of a model, GB; one may take a third; none: a quarter of memory.reserve_gb, "
        "0.1 to 1 GB",
        ge=0.1,
    )

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceConfig:
    """What the server does for the machine it runs on."""

    keep_awake: Literal["auto", "never"] = option(
        "auto", "while requests run, keep the machine from going to sleep (macOS, with caffeinate)"
    )

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResidencyConfig:
    """Which models are in memory, and when."""

    keep_alive_s: float | None = option(
        None, "unload a model that is not pinned when idle for so long, seconds; none: when room is needed", gt=0
    )
    load_wait_s: float = option(600.0, "a request waits for its model to load so long; then 503, seconds", gt=0)
    verify: Literal["first", "always", "never"] = option(
        "first", "compare a model's files with their published SHA-256 before it is loaded; first: when they are new"
    )

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything that can be set. A nested dataclass is a section."""

    model: str | None = option(None, "folder or hub id of an MLX model")
    aliases: str | None = option(
        None, "other names of the model, with commas; * stands for any characters, as in claude-*"
    )
    adapters: str | None = option(
        None, "LoRA adapters of the model, as NAME=FOLDER with commas; a request names one as MODEL:NAME"
    )
    adapters_folder: str | None = option(
        None,
        "folder of folders of adapters, which an admin may load while the server runs; none: configured ones alone",
    )
    backend: Backend = option("mlx", "what computes; mock needs no model and no MLX")
    host: str = option("127.0.0.1", "address to listen on")
    port: int = option(8080, "port to listen on; 0: any free one", ge=0)
    log_level: LogLevel = option("info", "least severe log lines that are shown")
    log_format: LogFormat = option("console", "lines for people, or a JSON object a line")
    log_prompts: bool = option(False, "log what clients write, too")
    log_file: str | None = option(
        None, "file that the log is appended to; it may be rotated away; none: standard error"
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
    """What requests for the one model say where they do not say otherwise; of the file alone."""
    models: tuple[ModelEntry, ...] = ()
    """Several models, of the file alone; then there is no `model`."""

    def __post_init__(self) -> None:
        check_options(self)
        if self.port > 65535:
            raise OptionError("port", f"must be at most 65535, not {self.port}")
        for name in ("model", "aliases", "adapters"):
            if self.models and getattr(self, name) is not None:
                raise OptionError(name, f"{getattr(self, name)!r} is for a server of one model; put it into models")
        if self.models and self.defaults != RequestDefaults():
            raise ValueError("defaults are for a server of one model; put them into models")
        if self.models and self.debug.record is not None:
            raise ValueError("debug.record is for a server of one model; leave models or debug.record unset")
        if self.ranks.is_one_model_in_parts and (self.models or self.residency.keep_alive_s is not None):
            raise ValueError("ranks.count is for one model that stays; leave models and residency.keep_alive_s unset")
        for entry in self.models:
            with_own(self, entry)


class CurrentConfig:
    """The configuration that holds now. A reload replaces it: what may change is read when it is needed."""

    def __init__(self, config: Config) -> None:
        self.now = config


@dataclass(frozen=True, slots=True)
class Resolved:
    """A configuration, and for each dotted key where its value came from."""

    config: Config
    origins: Mapping[str, str]
    again: Callable[[], Resolved]
    """Asks the same sources once more. Raises ConfigError."""


@functools.cache
def fields() -> tuple[Field, ...]:
    """All declared fields: the top level first, then section by section, in the order of declaration."""
    found = list(declared_fields(Config, "", MODELS_KEY))
    for name, section in sections().items():
        found += declared_fields(section, name)
    return tuple(found)


@functools.cache
def sections() -> Mapping[str, type]:
    """The sections by name, in the order of declaration."""
    hints = typing.get_type_hints(Config)
    classes = {name: hint for name, hint in hints.items() if isinstance(hint, type) and name != DEFAULTS_KEY}
    return {name: hint for name, hint in classes.items() if dataclasses.is_dataclass(hint)}


def resolve(file: Path | None, environ: Mapping[str, str], flags: Mapping[str, str | None]) -> Resolved:
    """The configuration of defaults < YAML file < environment < flags.

    `flags` has dotted keys; None is a flag not given. Without `file`, the variable PIPPIN_CONFIG may name one. Either
    may be the name of shipped settings.
    Raises ConfigError.
    """
    if file is None and FILE_VARIABLE in environ:
        if not environ[FILE_VARIABLE]:
            raise ConfigError(f"environment {FILE_VARIABLE}: is empty; name a file or unset it")
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
    """The configuration of one of several models. Raises ValueError."""
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
    """The part of `config` that the engine is told, with the folder the model was found in, and its adapters."""
    shared = [f.name for f in dataclasses.fields(EngineConfig) if f.name in sections() or f.name == "backend"]
    return EngineConfig(model_path=model_path, adapters=adapters, **{name: getattr(config, name) for name in shared})


def value_of(config: Config, key: str) -> Any:
    """The value at a dotted key; of `models`, the entries as a file would have them."""
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
    """An instance of `owner`. Raises ConfigError, which names the source of a field that cannot be so."""
    declared = {f.name: f for f in fields() if f.section == section}
    mine = {name: values[f.key] for name, f in declared.items() if f.key in values}
    try:
        return owner(**mine, **more)
    except OptionError as error:
        key = declared[error.field].key
        raise ConfigError(f"{origins[key]}: {key} {error.problem}") from None
    except ValueError as error:
        raise ConfigError(f"{section}: {error}" if section else str(error)) from None
