"""The answer of `/status`: the data that the page shows. Never contains text of prompts or answers."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel


class StatusSetting(BaseModel):
    """One effective setting, and the source of its value. Paths are shortened to their last part."""

    key: str
    value: bool | int | float | str | None
    origin: str
    is_default: bool
    help: str


class StatusError(BaseModel):
    """An error returned to clients, `count` times, the last at Unix time `at`. The message quotes no request."""

    at: float
    request_id: str
    status: int
    code: str
    message: str
    count: int


class StatusRequest(BaseModel):
    """One open request. `max_output_tokens` is null if only the context bounds it."""

    id: str
    kind: Literal["generation", "embedding", "scoring"]
    state: Literal["waiting", "reading", "writing"]
    age_s: float
    num_prompt_tokens: int
    num_computed_tokens: int
    num_cached_tokens: int
    num_output_tokens: int
    max_output_tokens: int | None


class StatusSeries(BaseModel):
    """The last minutes, one entry per second in each list; `at` is Unix time. Null marks a second without values.

    Rates are tokens per second: `output` delivered, `prompt` computed. `ttft` and `itl` are means, `max_*` the longest.
    """

    at: list[int]
    output: list[float]
    prompt: list[float]
    ttft: list[float | None]
    max_ttft: list[float | None]
    itl: list[float | None]
    max_itl: list[float | None]


class StatusMemory(BaseModel):
    """Use of memory, in bytes. `planned_bytes`: expected for open requests, `kv_bytes` included.

    `limit_bytes` is null if nothing bounds it; `raise_command` raises it.
    """

    limit_bytes: int | None
    limit_basis: str
    raise_command: str | None
    weights_bytes: int
    reserve_bytes: int
    kv_bytes: int
    planned_bytes: int
    prefix_bytes: int
    active_bytes: int
    peak_bytes: int


class StatusPrefixCache(BaseModel):
    """Stored prefixes and their hits. `reason`: why nothing is stored. Token counts are since the start."""

    reason: str | None
    is_on_disk: bool
    ram_bytes: int
    max_ram_bytes: int
    disk_bytes: int
    max_disk_bytes: int
    num_ram_blocks: int
    num_disk_blocks: int
    num_ram_tokens: int
    num_disk_tokens: int
    num_computed_tokens: int


class StatusDetails(BaseModel):
    """Details of a model that has loaded; `kv_cache` has a line per kind of layer.

    `kv_precision`: a short description.
    """

    context_limit: int
    context_limited_by: Literal["model", "configuration", "memory"]
    num_parameters: int
    weights_bytes: int
    load_s: float
    is_batched: bool
    unbatched_reason: str | None
    kv_precision: str
    kv_cache: list[str]
    kv_bytes_per_token: int


class StatusCounts(BaseModel):
    """Prompts and sequences by current state, and how many have ended since the start."""

    num_waiting: int
    num_prefilling: int
    num_running: int
    num_finished: int
    num_aborted: int
    num_failed: int
    num_stalls: int
    num_preemptions: int


class StatusSpeculation(BaseModel):
    """Tokens drafted, and those of them accepted, since the start."""

    num_drafted_tokens: int
    num_accepted_tokens: int


class StatusRank(BaseModel):
    """One rank of a shared model: its memory and its responsiveness, in bytes and seconds.

    `round_trip_s`: of the last message to it, null for rank 0; `limit_bytes` is null if nothing bounds it.
    """

    rank: int
    num_layers: int
    weights_bytes: int
    limit_bytes: int | None
    kv_bytes: int
    active_bytes: int
    round_trip_s: float | None
    progress_age_s: float
    is_busy: bool


class StatusRanks(BaseModel):
    """Split of a model across ranks, and the link between them."""

    parallel: Literal["tensor", "pipeline"]
    link: str
    ranks: list[StatusRank]


class StatusModel(BaseModel):
    """One served model. `load_percent` is null while unknown; `details` before its first load."""

    id: str
    aliases: list[str]
    state: Literal["unloaded", "loading", "loaded", "unloading", "failed"]
    health: Literal["loading", "ok", "stalled", "dead"]
    detail: str
    load_percent: float | None
    is_pinned: bool
    details: StatusDetails | None
    memory: StatusMemory
    prefix_cache: StatusPrefixCache
    counts: StatusCounts
    speculation: StatusSpeculation
    ranks: StatusRanks | None
    num_requests: int
    requests: list[StatusRequest]
    series: StatusSeries


class StatusReport(BaseModel):
    """State of the server. `settings` come only with `since` 0.

    `health` is the worst of the models', or `draining`. `limit_bytes`: memory that several models share; null if
    nothing bounds it, or with one model.
    """

    version: str
    now: float
    started_at: float
    health: Literal["loading", "ok", "stalled", "dead", "draining"]
    power_w: float | None
    limit_bytes: int | None
    models: list[StatusModel]
    errors: list[StatusError]
    settings: list[StatusSetting] | None
