"""`/v1/batches`: create, list, retrieve, cancel; with the routes of `/v1/files`."""

from __future__ import annotations

import re
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from server.batches.disk import on_disk
from server.batches.lines import ENDPOINTS
from server.batches.records import Batch
from server.batches.store import NotFound, page
from server.batches.worker import BatchWorker
from server.dialects.answers import ignored_header
from server.dialects.openai_batches import files
from server.dialects.openai_batches.errors import NoSuchRecord, NotEnabled, as_api_errors
from server.dialects.openai_batches.schema import (
    BatchError,
    BatchErrors,
    BatchList,
    BatchObject,
    BatchRequest,
    RequestCounts,
)
from server.dialects.openai_schema import error_responses
from server.dialects.parts import ServerParts
from server.dialects.published import PublishedRoute
from server.errors import InvalidRequest

UPLOADS = files.UPLOADS
_WINDOW = re.compile(r"([1-9]\d{0,6})([smhd])")
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_MOST_WINDOW_S = 30 * 86_400


def build_router(parts: ServerParts) -> APIRouter:
    """Build the router of one server."""
    router = APIRouter(route_class=PublishedRoute, tags=["OpenAI"])
    router.routes.extend(files.build_router(parts).routes)

    @router.post("/v1/batches", responses=error_responses(400, 404, 413, 507))
    async def create_batch(request: Request, response: Response, body: BatchRequest) -> BatchObject:
        """Create a batch of the requests in a file."""
        worker = _worker(parts)
        if body.endpoint not in ENDPOINTS:
            message = f"'endpoint' must be one of {', '.join(ENDPOINTS)}."
            raise InvalidRequest(message, param="endpoint", code="invalid_value")
        create = partial(
            worker.store.create_batch,
            request.state.tenant.name,
            input_id=body.input_file_id,
            endpoint=body.endpoint,
            window=body.completion_window,
            window_s=_window_s(body.completion_window),
            metadata=body.metadata,
        )
        with as_api_errors():
            try:
                batch = await on_disk(create)
            except NotFound:
                raise NoSuchRecord("file", body.input_file_id, "input_file_id") from None
        worker.wake()
        response.headers.update(ignored_header(body.ignored))
        return _encode(worker, batch)

    @router.get("/v1/batches", responses=error_responses(400, 404))
    async def list_batches(
        request: Request, after: str | None = None, limit: Annotated[int, Query(ge=1, le=100)] = 20
    ) -> BatchList:
        """List the batches of this key, newest first."""
        worker = _worker(parts)
        try:
            found, has_more = page(worker.store.batches(request.state.tenant.name), after, limit)
        except NotFound as error:
            raise NoSuchRecord("batch", str(error), "after") from None
        data = [_encode(worker, batch) for batch in found]
        ids: list[Any] = [batch.id for batch in data] or [None]
        return BatchList(data=data, first_id=ids[0], last_id=ids[-1], has_more=has_more)

    @router.get("/v1/batches/{batch_id}", responses=error_responses(404))
    async def retrieve_batch(request: Request, batch_id: str) -> BatchObject:
        """Return the state of a batch."""
        worker = _worker(parts)
        return _encode(worker, _find(worker, request, batch_id))

    @router.post("/v1/batches/{batch_id}/cancel", responses=error_responses(404))
    async def cancel_batch(request: Request, batch_id: str) -> BatchObject:
        """Cancel a batch; existing answers are kept."""
        worker = _worker(parts)
        batch = _find(worker, request, batch_id)
        batch = await on_disk(partial(worker.store.cancel_batch, batch.owner, batch.id))
        worker.wake()
        return _encode(worker, batch)

    return router


def _worker(parts: ServerParts) -> BatchWorker:
    """Return the worker. Raises NotEnabled."""
    if parts.batches is None:
        raise NotEnabled
    return parts.batches


def _find(worker: BatchWorker, request: Request, id: str) -> Batch:
    try:
        return worker.store.batch(request.state.tenant.name, id)
    except NotFound:
        raise NoSuchRecord("batch", id, "batch_id") from None


def _window_s(window: str) -> float:
    found = _WINDOW.fullmatch(window)
    seconds = int(found[1]) * _UNITS_S[found[2]] if found else 0
    if not 0 < seconds <= _MOST_WINDOW_S:
        message = "'completion_window' must be a number of s, m, h or d, such as 24h, and at most 30d."
        raise InvalidRequest(message, param="completion_window", code="invalid_value")
    return float(seconds)


def _encode(worker: BatchWorker, batch: Batch) -> BatchObject:
    def at(status: str) -> int | None:
        return int(batch.times[status]) if status in batch.times else None

    num_lines, num_completed, num_failed = worker.counts_of(batch)
    failures = BatchErrors(data=[BatchError(**each) for each in batch.failures]) if batch.failures else None
    return BatchObject(
        id=batch.id,
        endpoint=batch.endpoint,
        errors=failures,
        input_file_id=batch.input_id,
        completion_window=batch.completion_window,
        status=batch.status,
        output_file_id=batch.output_id if batch.has_output and not batch.is_open else None,
        error_file_id=batch.error_id if batch.has_errors and not batch.is_open else None,
        created_at=int(batch.created_at),
        in_progress_at=at("in_progress"),
        expires_at=int(batch.expires_at),
        finalizing_at=at("finalizing"),
        completed_at=at("completed"),
        failed_at=at("failed"),
        expired_at=at("expired"),
        cancelling_at=at("cancelling"),
        cancelled_at=at("cancelled"),
        request_counts=RequestCounts(total=num_lines, completed=num_completed, failed=num_failed),
        metadata=batch.metadata,
    )
