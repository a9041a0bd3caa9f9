"""`GET /`, the page, with its files under `/dashboard/`; `GET /status`, its data.

Ollama's clients request `/` to check for a server, so requests that do not accept HTML get Ollama's reply. The page
contains no data of this server and needs no key; `/status` does where keys are required.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from importlib import resources
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from server import __version__
from server.dialects.dashboard.encode import encode_model, encode_settings
from server.dialects.dashboard.schema import StatusError, StatusModel, StatusReport
from server.dialects.openai_schema import error_responses
from server.dialects.parts import ServerParts
from server.dialects.published import PublishedRoute
from server.errors import InvalidRequest
from server.power import Reading

_TYPES = {"css": "text/css", "html": "text/html", "js": "text/javascript", "svg": "image/svg+xml"}
RUNNING = "Ollama is running"
_WORST_FIRST = ("dead", "stalled", "loading", "ok")
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


@cache
def _files() -> dict[str, bytes]:
    """Return the page's files by name: only these are served."""
    folder = resources.files("server.dialects.dashboard") / "page"
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name.rpartition(".")[2] in _TYPES}


def build_router(parts: ServerParts) -> APIRouter:
    """Build the router of one server."""
    router = APIRouter(route_class=PublishedRoute, tags=["Dashboard"])

    @router.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def page(request: Request) -> Response:
        """Return the dashboard, or a line of text if the request does not accept HTML."""
        accepts_page = "text/html" in request.headers.get("accept", "")
        answer = _answer("index.html") if accepts_page else Response(RUNNING, media_type="text/plain; charset=utf-8")
        answer.headers["Vary"] = "Accept"
        return answer

    @router.api_route("/dashboard/{name}", methods=["GET", "HEAD"], include_in_schema=False)
    async def file(name: str) -> Response:
        """Return a file of the page."""
        if name not in _files():
            raise _unknown()
        return _answer(name)

    @router.get("/status", responses=error_responses(400))
    async def status(
        since: Annotated[int, Query(ge=0, description="seconds after this Unix time")] = 0,
    ) -> StatusReport:
        """Report the state of this server: health, open requests, memory, and the last minutes second by second."""
        served = parts.registry.list()
        models = [encode_model(model, parts.activity.of(model.id), since) for model in served]
        return StatusReport(
            version=__version__,
            now=parts.activity.now(),
            started_at=parts.activity.started_at,
            health=_worst(models, is_draining=parts.lifecycle.is_draining),
            power_w=_watts(parts.power.reading),
            limit_bytes=max((m.share.process_bytes for m in served if m.share is not None), default=None),
            models=models,
            errors=[StatusError(**asdict(error)) for error in parts.recent_errors.list()],
            settings=None if since else encode_settings(parts.config, parts.origins),
        )

    return router


def _worst(models: Sequence[StatusModel], *, is_draining: bool) -> Any:
    worst = min((model.health for model in models), key=_WORST_FIRST.index, default="ok")
    return "draining" if is_draining and worst in ("ok", "loading") else worst


def _watts(reading: Reading | None) -> float | None:
    """Return the power of the whole machine, or of the chip if only that is known."""
    if reading is None:
        return None
    found = reading.watts.get("system", reading.watts.get("chip"))
    return None if found is None else round(found, 1)


def _answer(name: str) -> Response:
    kind = _TYPES[name.rpartition(".")[2]]
    return Response(_files()[name], media_type=f"{kind}; charset=utf-8", headers=HEADERS)


def _unknown() -> InvalidRequest:
    error = InvalidRequest("There is no such file.", code="not_found")
    error.status = 404
    return error
