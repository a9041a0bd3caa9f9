"""Class of a request on the wire: `priority`, and OpenAI's `service_tier`. Imports no dialect."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlx_backend.api.interface import PRIORITIES, Priority

PRIORITY_HEADER = "X-Pippin-Priority"


def check_priority(value: object) -> Priority | int | None:
    """Return a class, an integer, or None. Raises ValueError."""
    if value is None or value in PRIORITIES or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    raise ValueError("Input should be 'live', 'normal', 'batch' or an integer")


_OF_TIER: Mapping[str, Priority] = {"flex": "batch", "priority": "live"}
_TIERS: Mapping[Priority, str] = {"live": "priority", "normal": "default", "batch": "flex"}


def decode_priority(priority: Priority | int | None, service_tier: str | None = None) -> Priority:
    """Return the class that a request names; `priority` takes precedence over `service_tier`."""
    if isinstance(priority, str):
        return priority
    if priority is not None:
        return PRIORITIES[1 + (priority > 0) - (priority < 0)]
    return _OF_TIER.get(service_tier or "", "normal")


def tier_of(priority: Priority) -> str:
    """Return OpenAI's name of a class."""
    return _TIERS[priority]


def priority_header(fields: Any, priority: Priority) -> dict[str, str]:
    """Return the header with the request's class, if the request named one or its key changed it."""
    is_named = getattr(fields, "priority", None) is not None or getattr(fields, "service_tier", None) is not None
    return {PRIORITY_HEADER: priority} if is_named or priority != "normal" else {}
