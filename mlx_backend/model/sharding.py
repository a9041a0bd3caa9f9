"""A rank's share of a model: the group it computes with, and the model's layers, or parts of each, that it holds.

mlx-lm's models split themselves, by `shard` (every layer over all ranks) or `pipeline` (every rank some layers). Here
that happens before a weight is read, so a rank's memory never holds more than its share and one piece of a file.
"""

from __future__ import annotations

import faulthandler
import json
import os
import tempfile
from collections.abc import Mapping
from typing import Any

import mlx.core as mx

from mlx_backend.api.errors import ModelLoadError
from mlx_backend.api.interface import Parallel
from mlx_backend.core.membership import Membership

JOIN_S = 45
"""Ranks that do not find each other for so long end: MLX's own wait holds the GIL, and has no end on rank 0."""
_joined: list[Membership] = []
"""The group that this process belongs to: there can be one, until it ends."""


def join(membership: Membership) -> mx.distributed.Group:
    """Connect to the other ranks, all of which do the same now. Raises ModelLoadError.

    A process that waits too long ends with exit code 1: nothing else could end it.
    """
    if _joined:
        raise ModelLoadError("ranks: this process has been in a group before; restart it")
    _joined.append(membership)
    with tempfile.NamedTemporaryFile("w", suffix=".json") as hostfile:
        json.dump([[address] for address in membership.addresses], hostfile)
        hostfile.flush()
        os.environ["MLX_HOSTFILE"], os.environ["MLX_RANK"] = hostfile.name, str(membership.rank)
        faulthandler.dump_traceback_later(JOIN_S, exit=True)
        try:
            group = mx.distributed.init(strict=True, backend="ring")
        except (RuntimeError, ValueError) as error:
            raise ModelLoadError(f"ranks: rank {membership.rank} could not connect to the others: {error}") from error
        finally:
            faulthandler.cancel_dump_traceback_later()
    return group


def split(model: Any, config: Mapping[str, Any], group: mx.distributed.Group, membership: Membership) -> None:
    """Leave in a model that was not read yet what this rank holds. Raises ModelLoadError where it cannot be split."""
    check(model, config, membership.count, membership.parallel)
    try:
        if membership.parallel == "tensor":
            model.shard(group)
        else:
            model.model.pipeline(group)
    except (ValueError, RuntimeError, AttributeError, TypeError) as error:
        kind = config.get("model_type")
        raise ModelLoadError(
            f"ranks.count: this {kind} model cannot be split among {membership.count} ranks ({error})"
        ) from error


def check(model: Any, config: Mapping[str, Any], count: int, parallel: Parallel) -> None:
    """Raise ModelLoadError where a model cannot be split so, as far as that can be told without a group."""
    ways = []
    if hasattr(model, "shard"):
        ways.append("tensor")
    if hasattr(getattr(model, "model", None), "pipeline"):
        ways.append("pipeline")
    if parallel not in ways:
        instead = f"use --parallel {ways[0]}" if ways else "it runs in one process only"
        kind = config.get("model_type")
        raise ModelLoadError(f"ranks.parallel: mlx-lm's {kind} cannot be split as {parallel}; {instead}")
    if parallel == "tensor":
        check_heads(config, count)
    elif count > len(model.layers):
        raise ModelLoadError(f"ranks.count: {len(model.layers)} layers are too few for {count} ranks; choose fewer")


def check_heads(config: Mapping[str, Any], count: int) -> None:
    """Raise ModelLoadError where attention heads cannot be shared out evenly; mlx-lm does not check all of them."""
    text = {**config, **(config.get("text_config") or {})}
    names = ["num_attention_heads"] + ([] if text.get("kv_lora_rank") else ["num_key_value_heads"])
    for name in names:
        number = text.get(name)
        if isinstance(number, int) and number % count:
            raise ModelLoadError(f"ranks.count: {number} {name} cannot be divided among {count} ranks; choose another")


def local_config(config: Mapping[str, Any], membership: Membership) -> dict[str, Any]:
    """Return a config of the share that this rank holds, for those that read a shape from both config and model."""
    if membership.parallel != "tensor":
        return dict(config)
    local = dict(config)
    if isinstance(local.get("text_config"), dict):
        local["text_config"] = local_config(local["text_config"], membership)
    if isinstance(local.get("num_attention_heads"), int):
        local["num_attention_heads"] //= membership.count
    return local
