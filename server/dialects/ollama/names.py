"""Resolution of model names as clients of Ollama write them. Handles tags; loads nothing."""

from __future__ import annotations

from server.dialects.ollama.errors import UnknownModel
from server.errors import AdapterNotLoaded, ModelNotFound
from server.service.registry import ModelRegistry, ServedModel

_TAG = ":latest"


def resolve(registry: ModelRegistry, name: str | None) -> ServedModel:
    """Return the model called `name`, with or without the default tag. Raises UnknownModel, InvalidRequest."""
    return _find(registry, name)[0]


def resolve_named(registry: ModelRegistry, name: str | None) -> tuple[ServedModel, str]:
    """Return the same, with the name of the model or adapter that `name` refers to."""
    model, found = _find(registry, name)
    return model, registry.name_of(found)


def _find(registry: ModelRegistry, name: str | None) -> tuple[ServedModel, str]:
    name = name or ""
    other = name.removesuffix(_TAG) if name.endswith(_TAG) else f"{name}{_TAG}"
    for each in (name, other) if name else (name,):
        try:
            return registry.resolve(each), each
        except AdapterNotLoaded:
            break
        except ModelNotFound:
            continue
    raise UnknownModel(name, [each for model in registry.list() for each in (model.id, *model.adapter_ids)])
