"""A rank's share of a model: its group, and the layers, or parts of each, that it holds.

mlx-lm's models split themselves, by `shard` (every layer over all ranks) or `pipeline` (every rank some layers). Here
that happens before a weight is read, so a rank's memory never holds more than its share and one piece of a file.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from typing import Any

import mlx.core as mx

from mlx_backend.api.errors import ModelLoadError
from mlx_backend.core.membership import Membership
from mlx_backend.model.deadline import deadline

JOIN_S = 45
"""Time after which ranks that do not find each other end: MLX's own wait holds the GIL, and is endless on rank 0."""
_ADVICE = "stop other programs on the hostfile's ports, allow the ports in the firewalls, and restart all ranks"
_joined: list[Membership] = []
"""The group of this process; there can be only one until it ends."""


def join(membership: Membership) -> mx.distributed.Group:
    """Connect to the other ranks, all of which do the same now. Raises ModelLoadError.

    A process that waits too long ends with exit code 1 and a line: nothing else could end it.
    """
    if _joined:
        raise ModelLoadError("ranks: this process has already been in a group; restart it")
    _joined.append(membership)
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        backend, content, variables = describe(membership, file.name)
        json.dump(content, file)
        file.flush()
        os.environ.update(variables)
        try:
            with deadline(JOIN_S, _late(membership)):
                group = mx.distributed.init(strict=True, backend=backend)
        except (RuntimeError, ValueError) as error:
            raise ModelLoadError(
                f"ranks: rank {membership.rank} could not connect to the others: {error}; {_ADVICE}"
            ) from error
    return group


def _late(membership: Membership) -> str:
    own = membership.addresses[membership.rank]
    return f"pippin: ranks: MLX did not connect rank {membership.rank} ({own}) within {JOIN_S} s; {_ADVICE}"


def describe(membership: Membership, file: str) -> tuple[str, list[Any], dict[str, str]]:
    """Return MLX's backend for a group, and the content of the file and the variables that it reads.

    jaccl, MLX's RDMA over Thunderbolt 5, was not run: MLX for Linux does not include it.
    """
    rank = {"MLX_RANK": str(membership.rank)}
    if membership.rdma:
        devices = [list(row) for row in membership.rdma]
        return "jaccl", devices, {**rank, "MLX_IBV_DEVICES": file, "MLX_JACCL_COORDINATOR": membership.addresses[0]}
    addresses = [list(membership.addresses_of(each)) for each in range(membership.count)]
    return "ring", addresses, {**rank, "MLX_HOSTFILE": file}


def split(model: Any, config: Mapping[str, Any], group: mx.distributed.Group, membership: Membership) -> None:
    """Reduce an unread model to this rank's share. Raises ModelLoadError if mlx-lm cannot split it.

    `planning.ranks.check` comes before and refuses splits for which mlx-lm would produce nonsense.
    """
    try:
        if membership.parallel == "tensor":
            model.shard(group)
        else:
            uneven = {} if membership.split is None else {"split": list(membership.split)}
            model.model.pipeline(group, **uneven)
    except (ValueError, RuntimeError, AttributeError, TypeError) as error:
        kind = config.get("model_type")
        raise ModelLoadError(
            f"ranks.count: this {kind} model cannot be split among {membership.count} ranks ({error})"
        ) from error


def local_config(config: Mapping[str, Any], membership: Membership) -> dict[str, Any]:
    """Return the config of this rank's share, for code that reads a shape from both config and model."""
    if membership.parallel != "tensor":
        return dict(config)
    local = dict(config)
    if isinstance(local.get("text_config"), dict):
        local["text_config"] = local_config(local["text_config"], membership)
    if isinstance(local.get("num_attention_heads"), int):
        local["num_attention_heads"] //= membership.count
    return local
