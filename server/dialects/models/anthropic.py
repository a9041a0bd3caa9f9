"""The served models in the form of Anthropic's `/v1/models`, for its clients."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from server.dialects.models.schema import AnthropicModel, AnthropicModelList
from server.service.registry import ServedModel


def encode_anthropic_list(models: Sequence[ServedModel]) -> AnthropicModelList:
    """Return one page with all models."""
    data = [encode_anthropic_model(model, adapter) for model in models for adapter in ("", *model.adapters.names)]
    ids = [each.id for each in data]
    return AnthropicModelList(data=data, first_id=ids[0] if ids else None, last_id=ids[-1] if ids else None)


def encode_anthropic_model(model: ServedModel, adapter: str = "") -> AnthropicModel:
    """Return one model, or one of its adapters."""
    name = model.name_with(adapter)
    created_at = datetime.fromtimestamp(model.created, UTC).isoformat().replace("+00:00", "Z")
    limit = None if model.info is None else model.info.context_limit
    return AnthropicModel(id=name, display_name=name, created_at=created_at, max_input_tokens=limit, max_tokens=limit)
