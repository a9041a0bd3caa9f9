"""What ranks say to each other: JSON objects in frames. `call` names what rank 0 asks for, `say` what others answer.

A call of the runner's door has its arguments as records of runs have them (core/as_json.py). No MLX, no pickle.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from mlx_backend.api.config import EngineConfig
from mlx_backend.api.interface import ModelInfo, SamplingParams
from mlx_backend.core.as_json import decode, encode
from mlx_backend.core.membership import Membership
from mlx_backend.core.step import StepPlan
from mlx_backend.planning.admission import Budget

_COMPARED = ("is_batched", "vocab_size", "embedding", "dequantized_reason", "ungrouped_reason", "pads_chunks")
"""What every rank finds out for itself, and must find alike."""
_ROW_TOKENS = 4096
"""The length of the row by which ranks compare how much fits them."""


def write(message: Mapping[str, Any]) -> bytes:
    """Return a message as the payload of a frame."""
    return json.dumps(encode(dict(message)), separators=(",", ":")).encode()


def read(payload: bytes) -> dict[str, Any]:
    """Return a message. Raises ValueError where it is none."""
    try:
        message = decode(json.loads(payload))
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"a message that cannot be read ({type(error).__name__}: {error})") from error
    if not isinstance(message, dict):
        raise ValueError("a message that is not an object")
    return message


def versions() -> dict[str, str]:
    """Return what must be alike on all ranks."""
    found = {}
    for name in ("pippin", "mlx", "mlx-lm"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "none"
    return found


def mirrored(plan: StepPlan) -> StepPlan:
    """Return what other ranks need of a plan: rank 0 alone draws, masks and ends sequences, and chunks come by name."""
    rows = tuple(
        dataclasses.replace(row, sampling=SamplingParams(), key=0, stop_ids=frozenset(), min_tokens=0, mock=None)
        for row in plan.new_rows
    )
    return dataclasses.replace(plan, new_rows=rows, masked=(), chunks=())


def config_fields(config: EngineConfig) -> dict[str, Any]:
    """Return a configuration as plain values, without what is rank 0's alone."""
    sent = dataclasses.replace(config, hosts=None, ranks=dataclasses.replace(config.ranks, hostfile=None, key=None))
    return dataclasses.asdict(sent)


def read_config(fields: Mapping[str, Any]) -> EngineConfig:
    """Return the configuration of `config_fields`. Raises ValueError."""
    hints = typing.get_type_hints(EngineConfig)
    try:
        return EngineConfig(
            **{
                name: hints[name](**value) if dataclasses.is_dataclass(hints[name]) else value
                for name, value in fields.items()
            }
        )
    except (TypeError, KeyError) as error:
        raise ValueError(f"a configuration of another version ({error})") from error


def membership_fields(membership: Membership) -> dict[str, Any]:
    """Return a membership as plain values."""
    return dataclasses.asdict(membership)


def read_membership(fields: Mapping[str, Any]) -> Membership:
    """Return the membership of `membership_fields`. Raises ValueError."""
    try:
        return Membership(**fields)
    except TypeError as error:
        raise ValueError(f"a membership of another version ({error})") from error


def facts(info: ModelInfo, budget: Budget | None) -> dict[str, Any]:
    """Return what a rank says of its loaded share."""
    compared = {name: repr(getattr(info, name)) for name in _COMPARED}
    room = None if budget is None else {"free": budget.limit_bytes, "row": budget.row_bytes(_ROW_TOKENS)}
    return {"compared": compared, "context": info.context_limit, "weights": info.weights_bytes, "room": room}


def differences(own: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Return what another rank found unlike this one, a text each."""
    ours, theirs = own["compared"], other["compared"]
    return [f"{name}: {ours[name]} and {theirs.get(name)}" for name in ours if theirs.get(name) != ours[name]]


def fitting_limit(own: Mapping[str, Any], other: Mapping[str, Any]) -> int | None:
    """Return the bytes of this rank's budget that stand for all of another's, where that is less; else None."""
    ours, theirs = own["room"], other["room"]
    if ours is None or theirs is None or not theirs["row"]:
        return None
    limit = int(theirs["free"] * ours["row"] / theirs["row"])
    return limit if limit < ours["free"] else None


def limited(info: ModelInfo, context: int) -> ModelInfo:
    """Return what is known of the model where another rank has memory for so much context only."""
    return dataclasses.replace(info, context_limit=context, context_limited_by="memory")
