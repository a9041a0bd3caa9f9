"""The `keep_alive` of a request: parsed, and applied as far as the configuration allows.

The configuration decides which models stay; a request can only unload one at once, with `keep_alive` 0.
"""

from __future__ import annotations

import re
from math import inf

from fastapi import Request

from server.errors import InvalidRequest
from server.security.refusals import AdminRefused
from server.service.registry import ServedModel

PARAM = "keep_alive"
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"(\d{1,12}(?:\.\d{0,12})?|\.\d{1,12})(ns|us|µs|ms|s|m|h)", re.ASCII)
_NUMBER = re.compile(r"\d{1,12}(\.\d{1,12})?", re.ASCII)


def read_keep_alive(value: float | str | None) -> float | None:
    """Return seconds; `inf` for a negative value, which means forever; None if not given. Raises InvalidRequest."""
    if value is None:
        return None
    seconds = value if isinstance(value, int | float) else _read_duration(value)
    return inf if seconds < 0 else float(min(seconds, 1e12))


def _read_duration(text: str) -> float:
    sign, rest = (-1.0, text[1:]) if text.startswith("-") else (1.0, text.removeprefix("+"))
    if _NUMBER.fullmatch(rest):
        return sign * float(rest)
    parts = list(_PART.finditer(rest))
    if not parts or "".join(part.group() for part in parts) != rest:
        message = f"Invalid value for '{PARAM}': it should be seconds, or a duration such as '5m' or '1h30m'."
        raise InvalidRequest(message, param=PARAM, code="invalid_value")
    return sign * sum(float(part[1]) * _UNITS[part[2]] for part in parts)


def is_as_configured(seconds: float | None, model: ServedModel) -> bool:
    """Return whether the model is already kept for the requested time, or no time is given."""
    if seconds is None:
        return True
    configured = model.keep_alive_s
    return seconds == (inf if configured is None or model.is_pinned else configured)


def may_unload(request: Request, model: ServedModel) -> bool:
    """Return whether this client may unload the model: with keys only an admin's, and never a pinned model."""
    return not model.is_pinned and bool(request.state.is_operator)


def check_unload(request: Request, model: ServedModel) -> None:
    """Raise APIError if the model may not be unloaded."""
    if not request.state.is_operator:
        raise AdminRefused
    if model.is_pinned:
        message = f"The model '{model.id}' is pinned: it stays in memory for as long as the server runs."
        raise InvalidRequest(message, param=PARAM, code="model_pinned")
