"""The answer of `/status`: what a page needs to show what goes on. Never what anybody has asked or was answered."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel


class StatusSetting(BaseModel):
    """One setting as it took effect, and where its value came from. Of a path the last part alone."""

    key: str
    value: bool | int | float | str | None
    origin: str
    is_default: bool
    help: str


class StatusError(BaseModel):
    """An error that clients were told, `count` times, the last at Unix time `at`. The message quotes no request."""

    at: float
    request_id: str
    status: int
    code: str
    message: str
    count: int


class StatusRequest(BaseModel):
    """One open request. `max_output_tokens` is null where it is bounded by the context alone."""

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
    """The last minutes, a second a place in each list; `at` is Unix time. Null where nothing came in that second.

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
    """Where the bytes go. `planned_bytes`: what open requests are expected to take, `kv_bytes` included.

    `limit_bytes` is null where nothing bounds it; `raise_command` is what raises it.
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
    """What is kept of prompts, and what came of it. `reason`: why nothing is. Token counts are since the start."""

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
    """What is known of a model once it has loaded; `kv_cache` is a line for each kind of layer.

    `kv_precision`: in a few words.
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
    """Prompts and sequences by state now, and how many have ended since the start."""

    num_waiting: int
    num_prefilling: int
    num_running: int
    num_finished: int
    num_aborted: int
    num_failed: int
    num_stalls: int
    num_preemptions: int


class StatusSpeculation(BaseModel):
    """Tokens that were guessed, and those of them that answers have taken, since the start."""

    num_drafted_tokens: int
    num_accepted_tokens: int


class StatusRank(BaseModel):
    """One rank of a model that several share: what it holds, and whether it answers. Bytes and seconds.

    `round_trip_s`: of the last message to it, null for rank 0; `limit_bytes` is null where nothing bounds it.
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
    """How a model is shared, and over what."""

    parallel: Literal["tensor", "pipeline"]
    link: str
    ranks: list[StatusRank]


class StatusModel(BaseModel):
    """One served model. `load_percent` is null while nothing is known; `details` until it has loaded once."""

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
    """What goes on. `settings` come only with `since` 0.

    `health` is the worst of the models', or that the server is about to end. `limit_bytes`: what several models may use
    together; null where nothing bounds it, or there is one.
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
