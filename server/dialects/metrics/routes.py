"""`GET /metrics`. A snapshot of the statistics of engines and models; nothing is counted here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter
from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector
from starlette.responses import Response

from server.dialects.metrics.classes import class_families
from server.dialects.metrics.engines import build_families, engine_families, power_families
from server.dialects.metrics.grammars import grammar_families
from server.dialects.metrics.prefix_cache import prefix_cache_families
from server.dialects.metrics.process import process_families
from server.dialects.metrics.ranks import rank_families
from server.dialects.metrics.requests import error_families, request_families
from server.dialects.metrics.routers import router_families
from server.dialects.metrics.speculation import speculation_families
from server.dialects.parts import ServerParts
from server.dialects.published import PublishedRoute

_TEXT: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "Prometheus' text format"}
}


def build_router(parts: ServerParts) -> APIRouter:
    """Build the routes of one server."""
    router = APIRouter(route_class=PublishedRoute, tags=["Probes"])

    @router.get("/metrics", response_class=Response, responses=_TEXT)
    async def metrics() -> Response:
        """Return requests, tokens, times and bytes of every model, for Prometheus."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Snapshot(parts))
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return router


class _Snapshot(Collector):
    """All metrics of one application at one moment."""

    def __init__(self, parts: ServerParts) -> None:
        self._parts = parts

    def collect(self) -> Iterator[Metric]:
        models = [(model, model.engine.stats()) for model in self._parts.registry.list()]
        yield from request_families([(model.id, model.measures) for model, _ in models])
        yield from error_families(self._parts.error_counts)
        yield from engine_families(models)
        yield from class_families(models)
        loaded = [(model.id, stats, model.engine.model_info) for model, stats in models]
        yield from router_families(loaded)
        yield from rank_families(loaded)
        yield from prefix_cache_families([(model.id, stats.prefix_cache) for model, stats in models])
        yield from speculation_families([(model.id, stats.speculation) for model, stats in models])
        yield from grammar_families([(model.id, model.grammar_stats) for model, _ in models])
        yield from power_families(self._parts.power)
        yield from build_families()
        yield from process_families()
