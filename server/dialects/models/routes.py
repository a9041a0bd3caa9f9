"""`GET /v1/models` and `GET /v1/models/{id}`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from mlx_backend.api.interface import PrefixCacheReport, RanksInfo
from server.dialects.models.anthropic import encode_anthropic_list, encode_anthropic_model
from server.dialects.models.schema import (
    Adapter,
    AnthropicModel,
    AnthropicModelList,
    DraftModel,
    EmbeddingDetails,
    KeptKind,
    KVCache,
    Memory,
    ModelDetails,
    ModelList,
    ModelObject,
    PrefixCache,
    Rank,
    Ranks,
    ScoringDetails,
    ToolCalls,
)
from server.dialects.openai_schema import error_responses
from server.dialects.parts import ServerParts
from server.dialects.published import PublishedRoute
from server.service.registry import ServedModel
from server.text.parsers.parts import ChatFormat

_VERSION = "anthropic-version"
"""Header that Anthropic's clients send with every request."""


def build_router(parts: ServerParts) -> APIRouter:
    """Build the router of one server."""
    router = APIRouter(route_class=PublishedRoute, tags=["OpenAI"])

    @router.get("/models", include_in_schema=False)
    @router.get("/models/", include_in_schema=False)
    @router.get("/v1/models/", include_in_schema=False)
    @router.get("/v1/models", response_model=ModelList)
    async def list_models(request: Request) -> Any:
        """List the served models; with the header `anthropic-version`, in Anthropic's form."""
        if _VERSION in request.headers:
            return _written(encode_anthropic_list(parts.registry.list()))
        models = parts.registry.list()
        return ModelList(data=[each for model in models for each in (_encode(model), *_encode_adapters(model))])

    @router.get("/models/{id:path}", include_in_schema=False)
    @router.get("/v1/models/{id:path}", response_model=ModelObject, responses=error_responses(404))
    async def retrieve_model(request: Request, id: str) -> Any:
        """Return one served model; with the header `anthropic-version`, in Anthropic's form."""
        model = parts.registry.resolve(id)
        adapter = parts.registry.adapter_of(id)
        if _VERSION in request.headers:
            return _written(encode_anthropic_model(model, adapter))
        is_own = model.name_with(adapter) == model.id
        return _encode(model) if is_own else _encode_adapter(model, adapter)

    return router


def _written(answer: AnthropicModel | AnthropicModelList) -> Response:
    return Response(answer.model_dump_json(), media_type="application/json")


def _encode(model: ServedModel) -> ModelObject:
    details = _encode_details(model)
    return ModelObject(
        id=model.id,
        created=model.created,
        state=model.state,
        max_model_len=None if details is None else details.context_limit,
        pippin=details,
    )


def _encode_adapters(model: ServedModel) -> list[ModelObject]:
    return [_encode_adapter(model, adapter) for adapter in model.adapters.names]


def _encode_adapter(model: ServedModel, adapter: str) -> ModelObject:
    """Return the model's object with the adapter's name and the model as its parent."""
    return _encode(model).model_copy(update={"id": model.name_with(adapter), "parent": model.id})


def _encode_details(model: ServedModel) -> ModelDetails | None:
    info = model.info
    if info is None:
        return None
    format = ChatFormat() if model.tokenizer is None else model.tokenizer.chat_format
    return ModelDetails(
        context_limit=info.context_limit,
        context_limited_by=info.context_limited_by,
        vocab_size=info.vocab_size,
        num_parameters=info.num_parameters,
        weights_bytes=info.weights_bytes,
        is_batched=info.is_batched,
        unbatched_reason=info.unbatched_reason,
        ungrouped_reason=info.ungrouped_reason,
        whole_heads_reason=info.whole_heads_reason,
        max_draft_tokens=info.max_drafts,
        no_drafts_reason=info.no_drafts_reason or None,
        draft_model=None if info.draft_model is None else DraftModel(**asdict(info.draft_model)),
        kv_caches=[KVCache.model_validate(asdict(cache)) for cache in info.kv_caches],
        dequantized_reason=info.dequantized_reason,
        adapters=[Adapter(**asdict(adapter)) for adapter in info.adapters],
        embedding=None if info.embedding is None else EmbeddingDetails(**asdict(info.embedding)),
        no_embedding_reason=info.no_embedding_reason if info.embedding is None else None,
        scoring=None if info.scoring is None else ScoringDetails(kind=info.scoring.kind, basis=info.scoring.basis),
        no_scoring_reason=info.no_scoring_reason if info.scoring is None else None,
        tool_calls=_encode_calls(format),
        has_reasoning=format.has_reasoning,
        memory=None if info.memory is None else Memory(**asdict(info.memory), free_bytes=info.memory.free_bytes),
        prefix_cache=_encode_prefix_cache(info.prefix_cache),
        ranks=None if info.ranks is None else _encode_ranks(info.ranks),
        stall_s=model.engine.stats().stall_s,
    )


def _encode_ranks(info: RanksInfo) -> Ranks:
    ranks = [Rank(**asdict(rank)) for rank in info.ranks]
    return Ranks(count=len(ranks), parallel=info.parallel, link=info.link, ranks=ranks)


def _encode_calls(format: ChatFormat) -> ToolCalls | None:
    if format.is_harmony:
        return ToolCalls(form="harmony", told_by="template")
    if format.calls is None:
        return None
    return ToolCalls(form=format.calls.name, told_by="prompt" if format.tells_tools == "prompt" else "template")


def _encode_prefix_cache(kept: PrefixCacheReport) -> PrefixCache:
    """Return the report without the folder's path, which is private to the machine."""
    return PrefixCache(
        reason=kept.reason,
        kinds=[KeptKind(kind=kind, kept=how) for kind, how in kept.kinds],
        needs_snapshots=kept.needs_snapshots,
        chunk_tokens=kept.chunk_tokens,
        ram_bytes=kept.ram_bytes,
        is_on_disk=kept.folder is not None,
        max_disk_bytes=None if kept.folder is None else kept.max_bytes,
    )
