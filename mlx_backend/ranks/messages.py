"""Messages between ranks: JSON objects in frames. `call` names a request of rank 0, `say` an answer of another rank.

A call of the runner has its arguments in the form of recorded runs (core/as_json.py). No MLX, no pickle.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from mlx_backend.api.config import EngineConfig
from mlx_backend.api.interface import SamplingParams
from mlx_backend.core.as_json import decode, encode
from mlx_backend.core.membership import Membership
from mlx_backend.core.step import StepPlan


def write(message: Mapping[str, Any]) -> bytes:
    """Return a message as the payload of a frame."""
    return json.dumps(encode(dict(message)), separators=(",", ":")).encode()


def read(payload: bytes) -> dict[str, Any]:
    """Return a message. Raises ValueError if it is invalid."""
    try:
        message = decode(json.loads(payload))
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"a message that cannot be read ({type(error).__name__}: {error})") from error
    if not isinstance(message, dict):
        raise ValueError("a message that is not an object")
    return message


def versions() -> dict[str, str]:
    """Return the versions that must be equal on all ranks."""
    found = {}
    for name in ("pippin", "mlx", "mlx-lm"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "none"
    return found


def mirrored(plan: StepPlan) -> StepPlan:
    """Return the part of a plan for other ranks: only rank 0 draws, masks and ends sequences; chunks come by name."""
    rows = tuple(
        dataclasses.replace(row, sampling=SamplingParams(), key=0, stop_ids=frozenset(), min_tokens=0, mock=None)
        for row in plan.new_rows
    )
    return dataclasses.replace(plan, new_rows=rows, masked=(), chunks=())


def config_fields(config: EngineConfig) -> dict[str, Any]:
    """Return a configuration as plain values, without the fields that only rank 0 uses."""
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
