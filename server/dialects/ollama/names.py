"""Model names as clients of Ollama write them, to those that are configured. Knows tags; loads nothing."""

from __future__ import annotations

from server.dialects.ollama.errors import UnknownModel
from server.errors import ModelNotFound
from server.service.registry import ModelRegistry, ServedModel

_TAG = ":latest"


def resolve(registry: ModelRegistry, name: str | None) -> ServedModel:
    """The model called `name`, with the tag that means none or without it. Raises UnknownModel, InvalidRequest."""
    name = name or ""
    other = name.removesuffix(_TAG) if name.endswith(_TAG) else f"{name}{_TAG}"
    for each in (name, other) if name else (name,):
        try:
            return registry.resolve(each)
        except ModelNotFound:
            continue
    raise UnknownModel(name, [model.id for model in registry.list()])
