"""`/v1/files`: upload, list, retrieve, content, delete."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from sse_starlette.sse import SendTimeoutError
from starlette.responses import FileResponse, Response
from starlette.types import Message, Receive, Scope, Send

from server.batches.disk import on_disk
from server.batches.records import StoredFile
from server.batches.store import NotFound, Store, Upload, page
from server.dialects.openai_batches.errors import NoSuchRecord, NotEnabled, as_api_errors
from server.dialects.openai_batches.schema import DeletedFile, FileList, FileObject
from server.dialects.openai_batches.upload import FILE, Body, Form, read_form
from server.dialects.openai_schema import Responses, error_responses
from server.dialects.parts import ServerParts
from server.dialects.published import PublishedRoute
from server.disconnect import ClientGone
from server.errors import APIError, InvalidRequest
from server.middleware import LINGER_S

UPLOADS = ("/v1/files",)
_UPLOAD_ERRORS = error_responses(400, 404, 413, 507)
_BYTES = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
_CONTENT: Responses = {200: {"description": "The content", "content": _BYTES}, **error_responses(404)}
_PURPOSE = "batch"
_MOST_EXPIRY_S = 2_592_000
_LEAST_EXPIRY_S = 3600
_FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["purpose", "file"],
                    "properties": {
                        "purpose": {"type": "string", "const": _PURPOSE},
                        "file": {"type": "string", "format": "binary"},
                        "expires_after[anchor]": {"type": "string", "const": "created_at"},
                        "expires_after[seconds]": {"type": "integer"},
                    },
                }
            }
        },
    }
}


def build_router(parts: ServerParts) -> APIRouter:
    """Build the router of one server."""
    router = APIRouter(route_class=PublishedRoute, tags=["OpenAI"])

    @router.post("/v1/files", response_model=FileObject, openapi_extra=_FORM, responses=_UPLOAD_ERRORS)
    async def create_file(request: Request) -> Any:
        """Upload a file of requests."""
        body = Body(request.receive)
        try:
            return encode_file(await _upload(parts, request, body))
        except ClientGone:
            return Response(status_code=499)
        except APIError:
            await body.drain(LINGER_S)
            raise

    @router.get("/v1/files", responses=error_responses(400, 404))
    async def list_files(
        request: Request,
        purpose: str | None = None,
        limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
        order: Literal["asc", "desc"] = "desc",
        after: str | None = None,
    ) -> FileList:
        """List the files of this key."""
        files = store_of(parts).files(request.state.tenant.name)
        wanted = [file for file in files if purpose is None or file.purpose == purpose]
        try:
            found, has_more = page(wanted if order == "desc" else wanted[::-1], after, limit)
        except NotFound as error:
            raise NoSuchRecord("file", str(error), "after") from None
        data = [encode_file(file) for file in found]
        ids: list[Any] = [file.id for file in data] or [None]
        return FileList(data=data, first_id=ids[0], last_id=ids[-1], has_more=has_more)

    @router.get("/v1/files/{file_id}", responses=error_responses(404))
    async def retrieve_file(request: Request, file_id: str) -> FileObject:
        """Return the details of a file."""
        return encode_file(_find(store_of(parts), request, file_id))

    @router.get("/v1/files/{file_id}/content", response_class=Response, responses=_CONTENT)
    async def retrieve_content(request: Request, file_id: str) -> Response:
        """Return the content of a file, as uploaded or written."""
        store = store_of(parts)
        file = _find(store, request, file_id)
        return _Content(
            store.path_of(file.id),
            media_type="application/octet-stream",
            filename=file.filename,
            send_timeout_s=parts.config.security.send_timeout_s,
        )

    @router.delete("/v1/files/{file_id}", responses=error_responses(404, 409))
    async def delete_file(request: Request, file_id: str) -> DeletedFile:
        """Delete a file that no open batch needs."""
        store = store_of(parts)
        file = _find(store, request, file_id)
        with as_api_errors():
            await on_disk(partial(store.delete_file, file.owner, file.id))
        return DeletedFile(id=file.id)

    return router


def store_of(parts: ServerParts) -> Store:
    """Return the store. Raises NotEnabled."""
    if parts.batches is None:
        raise NotEnabled
    return parts.batches.store


def encode_file(file: StoredFile) -> FileObject:
    return FileObject(
        id=file.id,
        bytes=file.num_bytes,
        created_at=int(file.created_at),
        expires_at=int(file.expires_at),
        filename=file.filename,
        purpose="batch_output" if file.purpose == "batch_output" else "batch",
    )


def _find(store: Store, request: Request, id: str) -> StoredFile:
    try:
        return store.file(request.state.tenant.name, id)
    except NotFound:
        raise NoSuchRecord("file", id, "file_id") from None


async def _upload(parts: ServerParts, request: Request, body: Body) -> StoredFile:
    """Store the uploaded file. Raises APIError, and then stores nothing."""
    store = store_of(parts)
    with as_api_errors():
        upload = await on_disk(partial(store.begin_upload, request.state.tenant.name))
        try:
            timeout_s = parts.config.security.read_timeout_s
            content_type = request.headers.get("content-type", "")
            form = await read_form(body.receive, content_type, upload.write, timeout_s=timeout_s)
            return await on_disk(partial(_finish, upload, form))
        finally:
            await on_disk(upload.close)


def _finish(upload: Upload, form: Form) -> StoredFile:
    """Check the form's fields and finish the upload. Raises InvalidRequest and the store's errors."""
    if form.filename is None:
        raise InvalidRequest("The parameter 'file' is required.", param=FILE, code="missing_required_parameter")
    purpose = form.fields.get("purpose")
    if purpose is None:
        raise InvalidRequest("The parameter 'purpose' is required.", param="purpose", code="missing_required_parameter")
    if purpose != _PURPOSE:
        message = f"'purpose' must be '{_PURPOSE}': files are kept for batches alone."
        raise InvalidRequest(message, param="purpose", code="invalid_value")
    return upload.finish(form.filename, purpose, _expiry_of(form))


def _expiry_of(form: Form) -> float | None:
    seconds = form.fields.get("expires_after[seconds]")
    if seconds is None:
        return None
    is_number = seconds.isascii() and seconds.isdecimal() and len(seconds) < 10
    if not is_number or not _LEAST_EXPIRY_S <= int(seconds) <= _MOST_EXPIRY_S:
        message = f"'expires_after[seconds]' must be a whole number from {_LEAST_EXPIRY_S} to {_MOST_EXPIRY_S}."
        raise InvalidRequest(message, param="expires_after", code="invalid_value")
    return float(seconds)


class _Content(FileResponse):
    """Response with a file; disconnects a client that does not read for too long."""

    def __init__(self, *arguments: object, send_timeout_s: float, **options: object) -> None:
        super().__init__(*arguments, **options)  # type: ignore[arg-type]
        self._send_timeout_s = send_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_in_time(message: Message) -> None:
            try:
                async with asyncio.timeout(self._send_timeout_s):
                    await send(message)
            except TimeoutError:
                raise SendTimeoutError from None

        await super().__call__(scope, receive, send_in_time)
