"""RequestDefaults: defaults for fields that a model's requests leave unset, and their form in the configuration.

Defines names, types and bounds; the service applies the defaults to requests.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from server.config_sources import ConfigError

KEY = "defaults"
ROLES = ("system", "user", "assistant")
MAX_STOPS = 16
_MOST_CHARS = 1_000_000


@dataclass(frozen=True, slots=True)
class Number:
    """Bounds of a number, both inclusive; with `is_open`, the lower one is excluded."""

    type: type
    least: float
    most: float
    is_open: bool = False


SAMPLING: Mapping[str, Number] = {
    "temperature": Number(float, 0, 2),
    "top_p": Number(float, 0, 1, is_open=True),
    "top_k": Number(int, 0, 2**31),
    "min_p": Number(float, 0, 1),
    "typical_p": Number(float, 0, 1, is_open=True),
    "repetition_penalty": Number(float, 0, 100, is_open=True),
    "presence_penalty": Number(float, -2, 2),
    "frequency_penalty": Number(float, -2, 2),
    "seed": Number(int, 0, 2**64 - 1),
}
"""Bounds by the names of `SamplingParams`."""
_MAX_TOKENS = Number(int, 1, 2**31)
NAMES = (*SAMPLING, "max_tokens", "stop", "system", "messages")


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestDefaults:
    """Defaults of one model; empty if there are none."""

    sampling: Mapping[str, float] = field(default_factory=dict)
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    system: str | None = None
    """System prompt of chats without one."""
    messages: tuple[Mapping[str, str], ...] = ()
    """Messages at the beginning of every chat, after its system prompt."""

    def as_written(self) -> dict[str, Any]:
        """Return the defaults in the form of a configuration file."""
        rest = {"max_tokens": self.max_tokens, "stop": [*self.stop], "system": self.system}
        found = {**self.sampling, **rest, "messages": [dict(message) for message in self.messages]}
        return {name: value for name, value in found.items() if name in self.sampling or value}


def read_defaults(value: Any, place: str) -> RequestDefaults:
    """Return the defaults from their written form; `place`: source and key, for errors. Raises ConfigError."""
    if not isinstance(value, dict):
        raise ConfigError(f"{place} must be a mapping of {', '.join(NAMES)}, not {value!r}")
    sampling: dict[str, float] = {}
    others: dict[str, Any] = {}
    for name, each in value.items():
        at = f"{place}.{name}"
        if name in SAMPLING:
            sampling[name] = _number(each, SAMPLING[name], at)
        elif name == "max_tokens":
            others[name] = _number(each, _MAX_TOKENS, at)
        elif name == "stop":
            others[name] = _stops(each, at)
        elif name == "system":
            others[name] = _text(each, at)
        elif name == "messages":
            others[name] = _messages(each, at)
        else:
            raise ConfigError(f"{place} cannot have {name!r}; it is a mapping of {', '.join(NAMES)}")
    return RequestDefaults(sampling=sampling, **others)


def _number(value: Any, wanted: Number, at: str) -> Any:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if wanted.type is int and isinstance(value, float):
        is_number = False
    if not is_number or not math.isfinite(value) or not wanted.least <= value <= wanted.most:
        raise ConfigError(f"{at} must be {_range(wanted)}, not {value!r}")
    if wanted.is_open and value == wanted.least:
        raise ConfigError(f"{at} must be {_range(wanted)}, not {value!r}")
    return wanted.type(value)


def _range(wanted: Number) -> str:
    kind = "a whole number" if wanted.type is int else "a number"
    most = int(wanted.most) if wanted.type is int else wanted.most
    return f"{kind} {f'above {wanted.least:g}, up' if wanted.is_open else f'from {wanted.least:g}'} to {most}"


def _stops(value: Any, at: str) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) and stop for stop in stops):
        raise ConfigError(f"{at} must be a text or a list of texts that are not empty, not {value!r}")
    if len(stops) > MAX_STOPS:
        raise ConfigError(f"{at} has {len(stops)} texts; at most {MAX_STOPS} are looked for")
    return tuple(stops)


def _text(value: Any, at: str) -> str:
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{at} must be a text that is not empty, not {value!r}")
    if len(value) > _MOST_CHARS:
        raise ConfigError(f"{at} has {len(value)} characters; at most {_MOST_CHARS} are taken")
    return value


def _messages(value: Any, at: str) -> tuple[Mapping[str, str], ...]:
    if not isinstance(value, list):
        raise ConfigError(f"{at} must be a list of messages, not {value!r}")
    for place, message in enumerate(value):
        if not isinstance(message, dict) or set(message) != {"role", "content"} or message["role"] not in ROLES:
            raise ConfigError(f"{at}[{place}] must have a role ({', '.join(ROLES)}) and a content, not {message!r}")
        _text(message["content"], f"{at}[{place}].content")
    return tuple(value)
