"""`GET /health` (should the process be kept), `GET /ready` (may it receive requests), `GET /version`.

They read the state that the engines report and wait for nothing.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from fastapi import APIRouter
from starlette.responses import JSONResponse

from server import __version__
from server.dialects.health.schema import HealthReport, Version
from server.dialects.parts import ServerParts
from server.dialects.published import PublishedRoute
from server.errors import RETRY_AFTER_S
from server.lifecycle import Lifecycle
from server.service.registry import ModelRegistry, ServedModel

_WORST_FIRST = ("dead", "stalled", "loading", "ok")
_UNAVAILABLE: dict[int | str, dict[str, Any]] = {503: {"model": HealthReport, "description": "Not now"}}


def build_router(parts: ServerParts) -> APIRouter:
    """Build the routes of one server."""
    router = APIRouter(route_class=PublishedRoute, tags=["Probes"])

    @router.get("/health", response_model=HealthReport, responses=_UNAVAILABLE)
    async def health() -> JSONResponse:
        """Return 200 while the server works, loads or drains, 503 when an engine is stalled or dead."""
        body = _report(parts.registry, parts.lifecycle)
        return JSONResponse(body, 200 if body["status"] in ("ok", "loading", "draining") else 503)

    @router.get("/ready", response_model=HealthReport, responses=_UNAVAILABLE)
    async def ready() -> JSONResponse:
        """Return 200 when every model can answer; 503 while loading, with the progress, or draining."""
        body = _report(parts.registry, parts.lifecycle)
        if body["status"] == "ok":
            return JSONResponse(body)
        headers = {"Retry-After": str(RETRY_AFTER_S)} if body["status"] in ("loading", "draining") else None
        return JSONResponse(body, 503, headers)

    @router.get("/version")
    async def version() -> Version:
        """Return the name and version of the server."""
        return Version(name="pippin", version=__version__)

    return router


def _report(registry: ModelRegistry, lifecycle: Lifecycle) -> dict[str, Any]:
    """Return the worst of the models' states, and each model's own; draining replaces ok and loading."""
    models = [_encode(model) for model in registry.list()]
    required = {model.id for model in registry.list() if model.is_required}
    # A model loaded on demand does not count while it loads or cannot be loaded: the server still serves.
    counted = [model for model in models if model["id"] in required or model["status"] == "stalled"]
    worst = min(counted, key=lambda model: _WORST_FIRST.index(model["status"]), default=None)
    if lifecycle.is_draining and (worst is None or worst["status"] in ("ok", "loading")):
        detail = f"{lifecycle.num_open} requests are being finished"
        return {"status": "draining", "detail": detail, "models": models}
    if worst is None:
        return {"status": "ok", "detail": "", "models": models}
    return {"status": worst["status"], "detail": worst["detail"], "models": models}


def _encode(model: ServedModel) -> dict[str, Any]:
    health = model.health()
    done, total = health.load.done_bytes, health.load.total_bytes
    return {
        "id": model.id,
        "status": health.status,
        "detail": health.detail,
        "load": {
            "done_bytes": done,
            "total_bytes": total,
            "percent": round(100 * done / total, 1) if total else None,
        },
        "stats": dataclasses.asdict(model.engine.stats()),
    }
