"""What is served in the form of Anthropic's `/v1/models`, for its clients."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from server.dialects.models.schema import AnthropicModel, AnthropicModelList
from server.service.registry import ServedModel


def encode_anthropic_list(models: Sequence[ServedModel]) -> AnthropicModelList:
    """One page with all of them."""
    ids = [model.id for model in models]
    data = [encode_anthropic_model(model) for model in models]
    return AnthropicModelList(data=data, first_id=ids[0] if ids else None, last_id=ids[-1] if ids else None)


def encode_anthropic_model(model: ServedModel) -> AnthropicModel:
    created_at = datetime.fromtimestamp(model.created, UTC).isoformat().replace("+00:00", "Z")
    limit = None if model.info is None else model.info.context_limit
    return AnthropicModel(
        id=model.id, display_name=model.id, created_at=created_at, max_input_tokens=limit, max_tokens=limit
    )
