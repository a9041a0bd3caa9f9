"""`adapters:` of a model in the configuration: LoRA adapters by name, each with its folder."""

from __future__ import annotations

import re
from collections.abc import Iterable

from mlx_backend.api.interface import AdapterConfig

_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,99}")


def read_written(written: str | None) -> tuple[AdapterConfig, ...]:
    """Return the adapters of `NAME=FOLDER,NAME=FOLDER`. Raises ValueError."""
    pairs = []
    for each in filter(None, (part.strip() for part in (written or "").split(","))):
        name, is_one, folder = each.partition("=")
        if not is_one:
            raise ValueError(f"adapters are written NAME=FOLDER, with commas between, unlike {each!r}")
        pairs.append((name.strip(), folder.strip()))
    return checked(pairs)


def checked(pairs: Iterable[tuple[object, object]]) -> tuple[AdapterConfig, ...]:
    """Return the adapters of names and folders. Raises ValueError."""
    found: dict[str, AdapterConfig] = {}
    for name, folder in pairs:
        if not isinstance(name, str) or not is_name(name):
            raise ValueError(f"an adapter's name is made of letters, digits, and . _ -, unlike {name!r}")
        if not isinstance(folder, str) or not folder:
            raise ValueError(f"the adapter {name} needs a folder, not {folder!r}")
        if name in found:
            raise ValueError(f"two adapters are called {name!r}")
        found[name] = AdapterConfig(name, folder)
    return tuple(found.values())


def is_name(name: str) -> bool:
    """Return whether this is a valid adapter name."""
    return _NAME.fullmatch(name) is not None


def served_name(model: str, adapter: str) -> str:
    """Return the name in requests of a model's adapter, or of the model without an adapter."""
    return f"{model}:{adapter}" if adapter else model
