"""Objects of `/admin/models`."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from mlx_backend.api.interface import Priority


class LoadState(BaseModel):
    """Progress of the file check, and then of loading."""

    done_bytes: int
    total_bytes: int


class AdminRank(BaseModel):
    """Current state of one rank of a model; bytes.

    `kv_bytes` and `active_bytes`: counted on all ranks after the same call, at most a second ago while they compute.
    `round_trip_s`: of the last message to it, null for rank 0; `progress_age_s`: time since its last completed call.
    """

    rank: int
    num_layers: int | None
    weights_bytes: int | None
    limit_bytes: int | None
    kv_bytes: int
    active_bytes: int
    round_trip_s: float | None
    progress_age_s: float
    is_busy: bool


class AdminAdapter(BaseModel):
    """An adapter that is configured or was loaded. Rank and bytes are null while it is not in memory.

    An `unloading` adapter takes no new requests, and is unloaded when its current ones are done.
    """

    name: str
    state: Literal["loaded", "unloading", "unloaded"]
    is_default: bool
    """Whether requests for the model itself use it."""
    rank: int | None
    weights_bytes: int | None


class LoadRequest(BaseModel):
    """Options for loading an adapter."""

    model_config = ConfigDict(extra="forbid")

    folder: str | None = None
    """Folder below `adapters_folder`, or of a configured adapter; by default, the folder with the adapter's name."""


class LoadAdapterRequest(BaseModel):
    """`lora_name`: NAME, or MODEL:NAME with several models; `lora_path`: as `folder` in `/admin/models/{id}/load`."""

    lora_name: str
    lora_path: str
    base_model_name: str | None = None
    load_inplace: bool = False


class UnloadAdapterRequest(BaseModel):
    """`lora_name`: NAME, or MODEL:NAME with several models."""

    lora_name: str
    base_model_name: str | None = None


class AdminClass(BaseModel):
    """Requests of one class: sequences that decode, those that do not yet, pauses, tokens."""

    priority: Priority
    num_running: int
    num_waiting: int
    num_pauses: int
    num_output_tokens: int


class AdminModel(BaseModel):
    """Current state of a served model.

    `memory_bytes`: its memory limit, fixed at loading; null if it has all memory or is not loaded.
    `weights_bytes`: null before its first load; `kv_bytes`: held by live sequences. `num_users`: requests that prevent
    unloading; of their sequences `num_running` decode and `num_waiting` do not yet. `idle_s`: time since the last use;
    null while in use. `num_output_tokens` of `classes` are the engine's. `ranks`: empty if one process has the whole
    model.
    """

    id: str
    object: Literal["model"] = "model"
    aliases: list[str]
    state: Literal["unloaded", "loading", "loaded", "unloading", "failed"]
    detail: str
    pinned: bool
    keep_alive_s: float | None
    idle_s: float | None
    load: LoadState
    memory_bytes: int | None
    weights_bytes: int | None
    kv_bytes: int
    context_limit: int | None
    num_users: int
    num_running: int
    num_waiting: int
    num_output_tokens: int
    adapters: list[AdminAdapter]
    classes: list[AdminClass]
    ranks: list[AdminRank]


class AdminModelList(BaseModel):
    """Every served model."""

    object: Literal["list"] = "list"
    data: list[AdminModel]
