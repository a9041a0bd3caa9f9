"""Answers of the probes."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

from mlx_backend.api.interface import EngineStats

Status = Literal["loading", "ok", "stalled", "dead"]
ServerStatus = Literal["loading", "ok", "stalled", "dead", "draining"]


class LoadState(BaseModel):
    """Progress of loading; `percent` is null while nothing is known."""

    done_bytes: int
    total_bytes: int
    percent: float | None


class ModelHealth(BaseModel):
    id: str
    status: Status
    detail: str
    load: LoadState
    stats: EngineStats


class HealthReport(BaseModel):
    """The worst of the models' states, with its detail, and each model's own; `draining` before a shutdown."""

    status: ServerStatus
    detail: str
    models: list[ModelHealth]


class Version(BaseModel):
    name: str
    version: str
