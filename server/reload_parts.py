"""The parts of a server that SIGHUP changes: log, limits and keys. Adding another takes one line."""

from __future__ import annotations

import dataclasses
from typing import Protocol

from server.config import ApiConfig, Config, CurrentConfig, SecurityConfig, StreamConfig
from server.logs import set_level
from server.middleware import RequestEnvelope
from server.reloading import Reloading
from server.security.gate import Gate

_LIMITS = (
    "max_body_bytes",
    "max_bodies_bytes",
    "max_json_depth",
    "max_json_items",
    "max_headers",
    "max_header_bytes",
    "read_timeout_s",
    "send_timeout_s",
    "requests_per_minute",
    "tokens_per_minute",
)


class _Connections(Protocol):
    def take_limits(self, limits: SecurityConfig) -> None: ...


def register_parts(
    reloading: Reloading, settings: CurrentConfig, gate: Gate, envelope: RequestEnvelope, connections: _Connections
) -> None:
    """Register the parts. `connections`: the class whose instances are the server's connections."""

    def take_limits(config: Config) -> None:
        held = settings.now
        limits = dataclasses.replace(held.security, **{name: getattr(config.security, name) for name in _LIMITS})
        settings.now = dataclasses.replace(held, security=limits, stream=config.stream, api=config.api)
        gate.take_limits(limits)
        envelope.take_limits(limits.max_body_bytes)
        connections.take_limits(limits)

    def take_level(config: Config) -> None:
        set_level(config.log_level, with_prompts=config.log_prompts)
        settings.now = dataclasses.replace(settings.now, log_level=config.log_level, log_prompts=config.log_prompts)

    others = [f"stream.{field.name}" for field in dataclasses.fields(StreamConfig)]
    others += [f"api.{field.name}" for field in dataclasses.fields(ApiConfig)]
    reloading.register("log level", take_level, ("log_level", "log_prompts"))
    reloading.register("limits", take_limits, [*(f"security.{name}" for name in _LIMITS), *others])
    reloading.register("keys", lambda _: gate.reload_keys())
