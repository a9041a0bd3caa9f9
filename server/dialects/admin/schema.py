"""The objects of `/admin/models`."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from mlx_backend.api.interface import Priority


class LoadState(BaseModel):
    """How far the check of the files, and then loading, has come."""

    done_bytes: int
    total_bytes: int


class AdminRank(BaseModel):
    """One rank of a model as it is now; bytes.

    `kv_bytes` and `active_bytes`: counted on all ranks after the same call, a second ago at most while they compute.
    `round_trip_s`: of the last message to it, null for rank 0; `progress_age_s`: since it last completed a call.
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
    """An adapter that is configured or was loaded; rank and bytes are null while it is not in memory.

    One that is `unloading` takes no new requests, and goes when those that it has are done.
    """

    name: str
    state: Literal["loaded", "unloading", "unloaded"]
    is_default: bool
    """Whether requests for the model itself have it."""
    rank: int | None
    weights_bytes: int | None


class LoadRequest(BaseModel):
    """What may be said when an adapter is loaded."""

    model_config = ConfigDict(extra="forbid")

    folder: str | None = None
    """Below `adapters_folder`, or the folder of a configured adapter; left out: the folder of its own name."""


class LoadAdapterRequest(BaseModel):
    """`lora_name`: NAME, or MODEL:NAME where several models are served; `lora_path`: as `folder` of an admin's load."""

    lora_name: str
    lora_path: str
    base_model_name: str | None = None
    load_inplace: bool = False


class UnloadAdapterRequest(BaseModel):
    """`lora_name`: NAME, or MODEL:NAME where several models are served."""

    lora_name: str
    base_model_name: str | None = None


class AdminClass(BaseModel):
    """The requests of one class: sequences that decode and that do not yet, times that they were paused, tokens."""

    priority: Priority
    num_running: int
    num_waiting: int
    num_pauses: int
    num_output_tokens: int


class AdminModel(BaseModel):
    """A served model as it is now.

    `memory_bytes`: what it may use while it is loaded, fixed when it was, null where it has all or is not loaded;
    `weights_bytes`: null until it was loaded once; `kv_bytes`: held by live sequences. `num_users`: requests that keep
    it from being unloaded; of their sequences `num_running` decode and `num_waiting` do not yet. `idle_s`: how long
    nobody has used it; null while somebody does. `num_output_tokens` of `classes` are the
    engine's. `ranks`: empty where one process has the whole model.
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
