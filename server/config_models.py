"""`models:` of the configuration file: several models by name, each a folder or hub id, or a mapping with more.

Only reads entries; independent of the other settings' meaning and of models themselves.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mlx_backend.api.interface import AdapterConfig
from server.adapters import checked, served_name
from server.config_sources import ConfigError, Field, Given, read
from server.request_defaults import KEY as DEFAULTS_KEY
from server.request_defaults import RequestDefaults, read_defaults

KEY = "models"
_SECTIONS = ("kv_cache", "context", "speculation")
_GLOBAL = frozenset({"context.on_overflow", "context.on_max_tokens"})
"""Settings of these sections that a model cannot override."""
_NAME = re.compile(r"[A-Za-z0-9][\w.:-]*(/[A-Za-z0-9][\w.:-]*)*")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelEntry:
    """One of several models. `own`: its own values of other settings, by dotted key."""

    name: str
    model: str
    """Folder or hub id."""
    pinned: bool = False
    """Loaded at the start, and unloaded only on request."""
    keep_alive_s: float | None = None
    """Idle time before unloading; None: `residency.keep_alive_s` applies."""
    aliases: tuple[str, ...] = ()
    adapters: tuple[AdapterConfig, ...] = ()
    adapter: str = ""
    """Adapter used by requests for the model itself; empty: none."""
    defaults: RequestDefaults = field(default_factory=RequestDefaults)
    """Defaults for fields that requests leave unset."""
    own: Mapping[str, Any] = field(default_factory=dict)


def read_models(given: Given, table: Sequence[Field]) -> tuple[ModelEntry, ...]:
    """Return the entries. `table`: all settings, some of which a model may override. Raises ConfigError."""
    value = given.value
    if value is None:  # every line of the section is commented out
        return ()
    if not isinstance(value, dict):
        raise ConfigError(f"{given.origin}: {KEY} must be a mapping of names to models, not {value!r}")
    own = {f.key: f for f in table if f.section in _SECTIONS and f.key not in _GLOBAL}
    entries = tuple(_read_entry(name, content, given.origin, own) for name, content in value.items())
    _check_names(entries, given.origin)
    return entries


def as_written(entry: ModelEntry) -> dict[str, Any]:
    """Return an entry in the form of a configuration file, without defaults."""
    settings: dict[str, Any] = {
        "pinned": entry.pinned,
        "keep_alive_s": entry.keep_alive_s,
        "aliases": list(entry.aliases),
        "adapters": {adapter.name: adapter.path for adapter in entry.adapters},
        "adapter": entry.adapter,
        DEFAULTS_KEY: entry.defaults.as_written(),
        **entry.own,
    }
    return {"model": entry.model, **{key: value for key, value in settings.items() if value}}


def _read_entry(name: Any, content: Any, origin: str, own: Mapping[str, Field]) -> ModelEntry:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError(f"{origin}: {KEY}: {name!r} is not a valid name; use letters, digits, and . _ - : /")
    place = f"{KEY}.{name}"
    if isinstance(content, str):
        content = {"model": content}
    if not isinstance(content, dict):
        raise ConfigError(f"{origin}: {place} must be a folder, a hub id or a mapping, not {content!r}")
    values: dict[str, Any] = {"name": name}
    for key, value in content.items():
        if key in _READERS:
            values[key] = _READERS[key](value, f"{origin}: {place}.{key}")
        elif key in _FIELDS:
            values[key] = read(replace(_FIELDS[key], section=place), Given(value, origin))
        elif key in _SECTIONS and isinstance(value, dict):
            values.setdefault("own", {}).update(_read_section(key, value, place, origin, own))
        else:
            known = ", ".join([*_FIELDS, *_READERS, *_SECTIONS])
            raise ConfigError(f"{origin}: {place} has an unknown or malformed key {key!r}; valid keys: {known}")
    if "model" not in values:
        raise ConfigError(f"{origin}: {place}.model is missing; set it to a folder or hub id")
    return _checked(ModelEntry(**values), f"{origin}: {place}")


def _checked(entry: ModelEntry, place: str) -> ModelEntry:
    if entry.keep_alive_s is not None and entry.keep_alive_s <= 0:
        raise ConfigError(f"{place}.keep_alive_s must be more than 0, not {entry.keep_alive_s!r}")
    if entry.pinned and entry.keep_alive_s is not None:
        raise ConfigError(f"{place} is pinned and never unloaded when idle; remove keep_alive_s")
    if entry.adapter and all(entry.adapter != adapter.name for adapter in entry.adapters):
        raise ConfigError(f"{place}.adapter must be the name of one of its adapters, not {entry.adapter!r}")
    return entry


def _read_section(
    section: str, content: dict[Any, Any], place: str, origin: str, own: Mapping[str, Field]
) -> Iterator[tuple[str, Any]]:
    for name, value in content.items():
        key = f"{section}.{name}"
        if key not in own:
            known = ", ".join(f.name for f in own.values() if f.section == section)
            raise ConfigError(f"{origin}: {place}.{section} has an unknown key {name!r}; valid keys: {known}")
        yield key, read(replace(own[key], section=f"{place}.{section}"), Given(value, origin))


def _read_aliases(value: Any, place: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(name, str) and name for name in value):
        raise ConfigError(f"{place} must be a list of names, not {value!r}")
    return tuple(value)


def _read_adapters(value: Any, place: str) -> tuple[AdapterConfig, ...]:
    if not isinstance(value, dict):
        raise ConfigError(f"{place} must be a mapping of names to folders, not {value!r}")
    try:
        return checked(value.items())
    except ValueError as error:
        raise ConfigError(f"{place}: {error}") from None


def _check_names(entries: Sequence[ModelEntry], origin: str) -> None:
    names = [name for entry in entries for name in (entry.name, *entry.aliases)]
    names += [served_name(entry.name, adapter.name) for entry in entries for adapter in entry.adapters]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"{origin}: {KEY}: {twice!r} names two models; rename one")


def _field(name: str, kind: type, is_optional: bool = False) -> Field:
    return Field(section=KEY, name=name, type=kind, is_optional=is_optional, default=None, help="")


_FIELDS = {
    f.name: f
    for f in (
        _field("model", str),
        _field("pinned", bool),
        _field("keep_alive_s", float, True),
        _field("adapter", str),
    )
}
_READERS: Mapping[str, Callable[[Any, str], Any]] = {
    "aliases": _read_aliases,
    "adapters": _read_adapters,
    DEFAULTS_KEY: read_defaults,
}
"""Readers of values that are not plain, by key."""
