"""The objects of `/v1/models`: OpenAI's fields, and under `pippin` what this server knows besides."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel


class KVCacheKind(BaseModel):
    kind: str
    num_layers: int


class ModelDetails(BaseModel):
    """What is known of a loaded model. `unbatched_reason` says why sequences are served one at a time."""

    context_limit: int
    vocab_size: int
    num_parameters: int
    weights_bytes: int
    is_batched: bool
    unbatched_reason: str | None
    kv_cache_kinds: list[KVCacheKind]


class ModelObject(BaseModel):
    """One served model; `max_model_len` and `pippin` are null while it loads."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "pippin"
    max_model_len: int | None
    pippin: ModelDetails | None


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelObject]
