"""`GET /admin/models`, `POST /admin/models/{id}/load` and `…/unload`; and vLLM's names for adapters."""

from __future__ import annotations

import time
from typing import Annotated

from fastapi import APIRouter, Query

from mlx_backend.api.interface import ModelInfo, RankStats
from server.dialects.admin.schema import (
    AdminAdapter,
    AdminClass,
    AdminModel,
    AdminModelList,
    AdminRank,
    LoadRequest,
    LoadState,
)
from server.dialects.admin.vllm_adapters import add_routes
from server.dialects.openai_schema import error_responses
from server.dialects.parts import ServerParts
from server.dialects.published import PublishedRoute
from server.errors import InvalidRequest
from server.service.registry import ServedModel

_FAILURES = error_responses(400, 404, 503)
_Force = Annotated[bool, Query(description="do not wait for the requests that run: they fail")]


def build_router(parts: ServerParts) -> APIRouter:
    """Build the routes of one server."""
    router = APIRouter(route_class=PublishedRoute, tags=["Admin"])

    @router.get("/admin/models")
    async def list_models() -> AdminModelList:
        """List every served model, with its memory and activity."""
        return AdminModelList(data=[_encode(model) for model in parts.registry.list()])

    @router.post("/admin/models/{id:path}/load", responses=_FAILURES)
    async def load_model(id: str, body: LoadRequest | None = None) -> AdminModel:
        """Load a model, or with MODEL:NAME one of its adapters, and wait for it.

        A loaded one stays as it is; an earlier failure is ignored.
        """
        registry, folder = parts.registry, None if body is None else body.folder
        model, adapter = registry.split(id)
        if model is not None:
            await model.adapters.load(registry.residency, model, model.adapters.find(adapter, folder))
            return _encode(model)
        if folder is not None:
            raise InvalidRequest("Only adapters are loaded from a folder; name one as MODEL:NAME.", param="folder")
        model = registry.resolve(id)
        await registry.residency.load(model)
        return _encode(model)

    @router.post("/admin/models/{id:path}/unload", responses=_FAILURES)
    async def unload_model(id: str, force: _Force = False) -> AdminModel:
        """Unload a model, or with MODEL:NAME one of its adapters, when its requests are done, and wait for it.

        The next request for a model reloads it; requests for an adapter return 404 until it is loaded again.
        """
        model, adapter = parts.registry.split(id)
        if model is not None and model.adapters.is_known(adapter):
            if force:
                raise InvalidRequest("An adapter is unloaded when its requests are done.", param="force")
            await model.adapters.unload(parts.registry.residency, model, adapter)
            return _encode(model)
        model = parts.registry.resolve(id)
        await parts.registry.residency.unload(model, by_force=force)
        return _encode(model)

    add_routes(router, parts)
    return router


def _encode(model: ServedModel) -> AdminModel:
    health, stats, info = model.health(), model.engine.stats(), model.info
    return AdminModel(
        id=model.id,
        aliases=list(model.aliases),
        state=model.state,
        detail=health.detail,
        pinned=model.is_pinned,
        keep_alive_s=model.keep_alive_s,
        idle_s=None if model.num_users else round(time.monotonic() - model.used_at, 3),
        load=LoadState(done_bytes=health.load.done_bytes, total_bytes=health.load.total_bytes),
        memory_bytes=None if model.share is None else model.share.share_bytes,
        weights_bytes=None if info is None else info.weights_bytes,
        kv_bytes=stats.kv_bytes,
        context_limit=None if info is None else info.context_limit,
        num_users=model.num_users,
        num_running=stats.num_running,
        num_waiting=stats.num_waiting + stats.num_prefilling,
        num_output_tokens=model.measures.num_output_tokens,
        adapters=_encode_adapters(model),
        classes=[
            AdminClass(
                priority=each.priority,
                num_running=each.num_running,
                num_waiting=each.num_waiting + each.num_prefilling,
                num_pauses=each.num_pauses,
                num_output_tokens=each.num_output_tokens,
            )
            for each in stats.classes
        ],
        ranks=[_encode_rank(each, info) for each in stats.ranks],
    )


def _encode_adapters(model: ServedModel) -> list[AdminAdapter]:
    held = {} if model.engine.model_info is None else {each.name: each for each in model.engine.model_info.adapters}
    return [
        AdminAdapter(
            name=name,
            state=state,
            is_default=name == model.adapters.default,
            rank=held[name].rank if name in held else None,
            weights_bytes=held[name].weights_bytes if name in held else None,
        )
        for name, state in model.adapters.states().items()
    ]


def _encode_rank(stats: RankStats, info: ModelInfo | None) -> AdminRank:
    held = None if info is None or info.ranks is None else info.ranks.ranks[stats.rank]
    return AdminRank(
        rank=stats.rank,
        num_layers=None if held is None else held.num_layers,
        weights_bytes=None if held is None else held.weights_bytes,
        limit_bytes=None if held is None else held.limit_bytes,
        kv_bytes=stats.kv_bytes,
        active_bytes=stats.active_bytes,
        round_trip_s=stats.round_trip_s,
        progress_age_s=round(stats.progress_age_s, 3),
        is_busy=stats.is_busy,
    )
