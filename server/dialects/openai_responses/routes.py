"""`POST /v1/responses`, and access to stored responses: `GET` and `DELETE /v1/responses/{id}`, its input items."""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from server.dialects.answers import AnswerWriters, answer, ignored_header
from server.dialects.openai_grammar import check_numbers, schemas_of
from server.dialects.openai_responses.decode import Decoded, decode, read_input
from server.dialects.openai_responses.encode import Output
from server.dialects.openai_responses.items import Item, publish, resolve_references
from server.dialects.openai_responses.reading import check_writable
from server.dialects.openai_responses.schema import (
    DeletedResponse,
    InputItems,
    InputTokens,
    ResponseEvent,
    ResponseObject,
    ResponsesRequest,
)
from server.dialects.openai_responses.store import Bounds, NotStored, ResponseStore, Stored
from server.dialects.openai_schema import GENERATION_ERRORS, answer_events, error_responses
from server.dialects.openai_written import dump
from server.dialects.parts import ServerParts
from server.dialects.published import PublishedRoute
from server.dialects.volatile_lines import settle_prompt
from server.errors import APIError, InvalidRequest, UnsupportedParameter
from server.service.job import ChatPrompt
from server.service.tokenization import conversation_of, tokenize

_RESPONSES = {**answer_events(ResponseObject, ResponseEvent), **GENERATION_ERRORS}
_OUR_ID = re.compile(r"[a-z]+_([0-9a-f]{48})_i?\d+")
_KEY_BYTES = 24


class ResponseNotFound(InvalidRequest):
    """No response with this id is stored for this key."""

    status = 404
    code = "response_not_found"

    def __init__(self, id: str, *, param: str = "response_id", code: str | None = None, what: str = "Response") -> None:
        super().__init__(
            f"{what} with id '{id[:80]}' not found: it was not answered or not stored here, was deleted, or had to "
            "make room for others.",
            param=param,
            code=code,
        )


class PreviousResponseNotFound(ResponseNotFound):
    """A response that a request continues, or a predecessor of it, is not stored: a 400, as in OpenAI's API."""

    status = 400

    def __init__(self, id: str) -> None:
        super().__init__(id, param="previous_response_id", code="previous_response_not_found", what="Previous response")


def build_router(parts: ServerParts) -> APIRouter:
    """Build the routes of one server, with its store."""
    router = APIRouter(route_class=PublishedRoute, tags=["OpenAI"])
    store = ResponseStore(lambda: _bounds(parts))

    async def read(request: Request, body: ResponsesRequest, stores: bool) -> tuple[Decoded, list[Item]]:
        """Return the decoded request, and its items with references resolved. Raises InvalidRequest."""
        owner = request.state.tenant.name
        tools = {"tools": body.tools} if body.tools else {}
        text = {"text": body.text.format} if body.text is not None and body.text.format else {}
        await check_numbers(request, {**schemas_of(body), **tools, **text})
        most_bytes = parts.config.security.max_body_bytes
        before = _context(store, owner, body.previous_response_id, most_bytes)
        sent = resolve_references(read_input(body), _References(store, owner, most_bytes).find)
        decoded = decode(
            body,
            before,
            sent,
            request_id=request.state.request_id,
            key=secrets.token_hex(_KEY_BYTES),
            stores=stores,
            shows_thoughts=parts.config.api.thoughts_field != "none",
            defaults=parts.registry.defaults_of(body.model or ""),
            allow=request.state.tenant.allow,
        )
        return decoded, sent

    @router.post("/responses", include_in_schema=False)
    @router.post("/v1/responses", response_class=Response, responses=_RESPONSES)
    async def create_response(request: Request, body: ResponsesRequest) -> Response:
        """Answer a conversation of items."""
        owner, stores = request.state.tenant.name, _stores(body, store)
        decoded, sent = await read(request, body, stores)
        keeper = _Keeper(store, owner, body.previous_response_id, sent, decoded.form.key) if stores else None
        writers = _Writers(decoded, body.model or "", keeper)
        return await answer(
            parts,
            request,
            decoded.job,
            body,
            writers.as_writers(),
            decoded.ignored,
            truncates=None if body.truncation is None else body.truncation == "auto",
        )

    @router.post("/v1/responses/input_tokens", responses=error_responses(400, 404, 413, 503))
    async def count_input_tokens(request: Request, response: Response, body: ResponsesRequest) -> InputTokens:
        """Count the prompt tokens of a request without computing it."""
        decoded, _ = await read(request, body, stores=False)
        (prompt,) = decoded.job.prompts
        assert isinstance(prompt, ChatPrompt)
        prompt, settled = settle_prompt(prompt, parts.config.api)
        source = conversation_of(prompt)
        response.headers.update(ignored_header(decoded.ignored) | settled)
        tokens = await tokenize(
            parts.registry, decoded.job.model, source, param="input", add_special_tokens=False, with_texts=False
        )
        return InputTokens(input_tokens=len(tokens.ids))

    @router.get("/v1/responses/{id}", response_class=Response, responses=_KEPT)
    async def retrieve_response(request: Request, id: str, stream: bool = False) -> Response:
        """Return a stored response."""
        if stream:
            raise UnsupportedParameter("stream", "A response that is over is not streamed again: leave 'stream' out.")
        return Response(_get(store, request, id).response, media_type="application/json")

    @router.delete("/v1/responses/{id}", responses=error_responses(404))
    async def delete_response(request: Request, id: str) -> DeletedResponse:
        """Delete a response, and the items sent for it."""
        _get(store, request, id)
        store.delete(request.state.tenant.name, id)
        return DeletedResponse(id=id)

    @router.post("/v1/responses/{id}/cancel", response_class=Response, responses=_NO_CANCEL)
    async def cancel_response(request: Request, id: str) -> Response:
        """Refused: no response is computed in the background."""
        _get(store, request, id)
        message = "Only a response with 'background' true can be cancelled, and there is none here: close the stream."
        raise InvalidRequest(message, param="response_id", code="not_cancellable")

    @router.get("/v1/responses/{id}/input_items", responses=error_responses(400, 404))
    async def list_input_items(
        request: Request,
        id: str,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        order: Literal["asc", "desc"] = "desc",
        after: str | None = None,
    ) -> InputItems:
        """List the input items of a response, including those of the responses before it."""
        _get(store, request, id)
        *before, last = _chain(store, request.state.tenant.name, id, ResponseNotFound)
        items = [*_items_of(before), *json.loads(last.items)]
        return _page(items if order == "asc" else items[::-1], limit, after)

    return router


_KEPT = {200: {"model": ResponseObject, "description": "The response"}, **error_responses(400, 404)}
_NO_CANCEL = {200: {"model": ResponseObject, "description": "Not yet: always refused"}, **error_responses(400, 404)}


def _bounds(parts: ServerParts) -> Bounds:
    config = parts.config.responses
    return Bounds(config.max_stored, int(config.max_stored_mb * 1e6))


def _stores(body: ResponsesRequest, store: ResponseStore) -> bool:
    if store.is_open:
        return body.store is not False
    if body.store:
        message = "'store' is not supported: this server keeps no responses (responses.max_stored)."
        raise UnsupportedParameter("store", message)
    return False


def _get(store: ResponseStore, request: Request, id: str) -> Stored:
    try:
        return store.get(request.state.tenant.name, id)
    except NotStored:
        raise ResponseNotFound(id) from None


def _chain(store: ResponseStore, owner: str, id: str, refusal: type[ResponseNotFound]) -> list[Stored]:
    try:
        return store.chain(owner, id)
    except NotStored as error:
        raise refusal(error.id) from None


def _context(store: ResponseStore, owner: str, id: str | None, most_bytes: int) -> list[Item]:
    """Return the items of all previous responses, the oldest first. Raises InvalidRequest."""
    if id is None:
        return []
    chain = _chain(store, owner, id, PreviousResponseNotFound)
    if sum(stored.num_bytes for stored in chain) > most_bytes:
        message = f"What was said before is larger than {most_bytes} bytes, the most that this server reads at once."
        raise InvalidRequest(message, param="previous_response_id", code="request_too_large")
    return _items_of(chain)


def _items_of(chain: Sequence[Stored]) -> list[Item]:
    found: list[Item] = []
    for stored in chain:
        found += json.loads(stored.items)
        found += json.loads(stored.response)["output"]
    return found


class _References:
    """Stored items that one request refers to. Reads each response once; limits their total size to that of a body.

    A reference has a hundred bytes, its target may have megabytes.
    """

    def __init__(self, store: ResponseStore, owner: str, most_bytes: int) -> None:
        self._store, self._owner, self._most_bytes = store, owner, most_bytes
        self._num_bytes = 0
        self._known: dict[str, dict[str, tuple[Item, int]]] = {}
        """For each response read: its items and their sizes, by id."""

    def find(self, id: str, at: str) -> Item:
        """Return an item by its id, which contains that of its response. Raises InvalidRequest."""
        ours = _OUR_ID.fullmatch(id)
        found = self._items_of(f"resp_{ours[1]}").get(id) if ours else None
        if found is None:
            raise ResponseNotFound(id, param=at, code="item_not_found")
        item, size = found
        self._num_bytes += size
        if self._num_bytes > self._most_bytes:
            message = f"The items up to this one are larger than {self._most_bytes} bytes together, the most that this"
            raise InvalidRequest(f"{message} server reads at once.", param=at, code="request_too_large")
        return item

    def _items_of(self, response_id: str) -> dict[str, tuple[Item, int]]:
        if response_id not in self._known:
            try:
                items = _items_of([self._store.get(self._owner, response_id)])
            except NotStored:
                items = []
            self._known[response_id] = {str(item.get("id")): (item, len(dump(item).encode())) for item in items[::-1]}
        return self._known[response_id]


def _page(items: Sequence[Any], limit: int, after: str | None) -> InputItems:
    begin = 0
    if after is not None:
        places = [place for place, item in enumerate(items) if item.get("id") == after]
        if not places:
            raise InvalidRequest("'after' names none of the items.", param="after", code="invalid_value")
        begin = places[0] + 1
    page = list(items[begin : begin + limit])
    ids = [item.get("id") for item in page] or [None]
    return InputItems(data=page, first_id=ids[0], last_id=ids[-1], has_more=begin + limit < len(items))


class _Keeper:
    """Stores a response once it is complete; the sent items are encoded before, which may fail."""

    def __init__(
        self, store: ResponseStore, owner: str, previous_id: str | None, sent: Sequence[Item], key: str
    ) -> None:
        """Encode the items. Raises InvalidRequest for an item that could not be returned later."""
        self._store, self._owner, self._previous_id = store, owner, previous_id
        items = publish(sent, key)
        try:
            self._items = dump(items).encode()
        except ValueError:
            check_writable((f"input.{position}", item) for position, item in enumerate(items))
            raise

    def keep(self, id: str, response: str) -> None:
        self._store.put(self._owner, id, Stored(response.encode(), self._items, self._previous_id))


class _Writers:
    """Writers of one response; an error in a stream ends the same response."""

    def __init__(self, decoded: Decoded, model: str, keeper: _Keeper | None) -> None:
        self._form, self._model, self._keeper = decoded.form, model, keeper
        self._output: Output | None = None

    def as_writers(self) -> AnswerWriters:
        return AnswerWriters(
            lambda head, _: self._begin(head.model, head.created, streams=True),
            lambda head: self._begin(head.model, head.created, streams=False),
            self._encode_error,
            starts_at_once=True,
        )

    def _begin(self, model: str, created: int, *, streams: bool) -> Output:
        self._output = Output(self._form, model, created, streams=streams, on_end=self._keep)
        return self._output

    def _keep(self, response: str) -> None:
        if self._keeper is not None:
            self._keeper.keep(self._form.id, response)

    def _encode_error(self, error: APIError) -> bytes:
        output = self._output or self._begin(self._model, int(time.time()), streams=True)
        return output.fail(error)
