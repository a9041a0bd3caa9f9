"""Conversion of a runner's arguments and results to JSON and back, for records of runs and for the ranks of a model.

A dataclass is identified by its name, with the fields that differ from their defaults.
"""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Sequence
from typing import Any

from mlx_backend.api.interface import MockText, SamplingParams, TokenLogprobs
from mlx_backend.core import step

_TYPES: dict[str, type] = {
    kind.__name__: kind
    for kind in (
        *(step.BlockRef, step.Chunk, step.Draft, step.DraftRequest, step.NewRow, step.Piece),
        *(step.PromptResult, step.Restore),
        *(step.RowTokens, step.Span, step.StepPlan, step.StepResult, MockText, SamplingParams, TokenLogprobs),
    )
}


def encode(value: Any) -> Any:
    """Return a value as JSON values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {
            each.name: encode(getattr(value, each.name))
            for each in dataclasses.fields(value)
            if getattr(value, each.name) != each.default
        }
        return {"type": type(value).__name__, **fields}
    if isinstance(value, dict):
        return {key: encode(each) for key, each in value.items()}
    if isinstance(value, bytes):
        return {"bytes": base64.b64encode(value).decode()}
    if isinstance(value, frozenset):
        return {"set": sorted(value)}
    if isinstance(value, list | tuple):
        return list(value) if _is_of_integers(value) else list(map(encode, value))
    return value


def decode(value: Any) -> Any:
    """Return the value that `encode` received. Raises KeyError or TypeError for other input."""
    if isinstance(value, list):
        return tuple(value) if _is_of_integers(value) else tuple(map(decode, value))
    if not isinstance(value, dict):
        return value
    if "bytes" in value:
        return base64.b64decode(value["bytes"])
    if "set" in value:
        return frozenset(value["set"])
    fields = {key: decode(each) for key, each in value.items() if key != "type"}
    return _TYPES[value["type"]](**fields) if "type" in value else fields


def _is_of_integers(values: Sequence[Any]) -> bool:
    """Return whether all are integers, as a prompt's tokens, without a call for each of them."""
    return set(map(type, values)) <= {int}
