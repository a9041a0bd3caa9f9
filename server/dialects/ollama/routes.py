"""Routes under `/api`: answers, embeddings, the catalogue, and unsupported operations."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from server import __version__
from server.dialects.answers import ignored_header
from server.dialects.ollama.answers import AnswerWish, answer
from server.dialects.ollama.bodies import read_body
from server.dialects.ollama.catalogue import encode_running, encode_shown, encode_tags, is_running
from server.dialects.ollama.decode import decode_chat, decode_generate
from server.dialects.ollama.embedding import decode_embed, decode_embeddings, encode_embed, encode_embeddings
from server.dialects.ollama.encode import Kind, encode_notice
from server.dialects.ollama.errors import NotOffered, UnknownModel
from server.dialects.ollama.keep_alive import (
    PARAM,
    check_unload,
    is_as_configured,
    may_unload,
    read_keep_alive,
)
from server.dialects.ollama.names import resolve, resolve_named
from server.dialects.ollama.published import (
    AT_THE_GATE,
    LINES,
    REFUSAL,
    OllamaChatAnswer,
    OllamaEmbedAnswer,
    OllamaEmbeddingsAnswer,
    OllamaGenerateAnswer,
    OllamaRunningModels,
    OllamaShown,
    OllamaStatus,
    OllamaTags,
    OllamaVersion,
    lines,
    taking,
    whole,
)
from server.dialects.ollama.schema import (
    ChatRequest,
    EmbeddingsRequest,
    EmbedRequest,
    GenerateRequest,
    GenerationBody,
    PullRequest,
    ShowRequest,
)
from server.dialects.openai_grammar import check_numbers
from server.dialects.parts import ServerParts
from server.disconnect import ClientGone, while_connected
from server.service.embedding import EmbeddingJob, Embeddings, embed
from server.service.registry import ServedModel

PREFIX = "/api"
COMPATIBLE_VERSION = "0.13.4"
"""Version of Ollama that this API is compatible with: clients refuse older ones."""
_CONFIGURE = "Name what it serves in its configuration; `pippin pull` fetches a model."


def build_router(parts: ServerParts) -> APIRouter:
    """Build the routes of one server."""
    router = APIRouter(prefix=PREFIX, tags=["Ollama"], default_response_class=Response, responses=AT_THE_GATE)
    _add_answers(router, parts)
    _add_embeddings(router, parts)
    _add_catalogue(router, parts)
    _add_refusals(router, parts)
    return router


def _add_answers(router: APIRouter, parts: ServerParts) -> None:
    @router.post("/chat", **taking(ChatRequest, lines(OllamaChatAnswer)))
    async def chat(request: Request) -> Response:
        """Answer a conversation; without messages, load or unload the model."""
        body = await read_body(request, ChatRequest)
        model, name = resolve_named(parts.registry, body.model)
        if not body.messages:
            return await _come_or_go(parts, request, model, "chat", body.keep_alive)
        await check_numbers(request, _with_numbers(format=body.format, tools=body.tools))
        job, ignored = decode_chat(body, name, request.state.request_id)
        return await answer(parts, request, model, job, _wish("chat", request, model, body, ignored))

    @router.post("/generate", **taking(GenerateRequest, lines(OllamaGenerateAnswer)))
    async def generate(request: Request) -> Response:
        """Answer a prompt, continue one, or fill a gap; with an empty prompt, load or unload the model."""
        body = await read_body(request, GenerateRequest)
        model, name = resolve_named(parts.registry, body.model)
        if not body.prompt and not body.suffix and not body.images:
            return await _come_or_go(parts, request, model, "generate", body.keep_alive)
        await check_numbers(request, _with_numbers(format=body.format))
        job, ignored = decode_generate(body, name, request.state.request_id)
        return await answer(parts, request, model, job, _wish("generate", request, model, body, ignored))


def _with_numbers(**fields: Any) -> dict[str, Any]:
    """Return the fields that may hold schemas, as they were read."""
    found = {name: value for name, value in fields.items() if value is not None}
    if "tools" in found:
        found["tools"] = [tool.model_dump(exclude_none=True) for tool in found["tools"]]
    return found


def _wish(kind: Kind, request: Request, model: ServedModel, body: GenerationBody, ignored: Iterable[str]) -> AnswerWish:
    kept_s = read_keep_alive(body.keep_alive)
    leaves = kept_s == 0 and may_unload(request, model)
    not_kept = [] if leaves or is_as_configured(kept_s, model) else [PARAM]
    return AnswerWish(
        kind=kind,
        is_streamed=body.stream is not False,
        context=None if body.options is None else body.options.num_ctx,
        leaves=leaves,
        headers=ignored_header([*ignored, *not_kept]),
    )


async def _come_or_go(
    parts: ServerParts, request: Request, model: ServedModel, kind: Kind, keep_alive: float | str | None
) -> Response:
    """Load the model, or with a `keep_alive` of 0 unload it, and report it. Raises APIError and EngineError."""
    kept_s = read_keep_alive(keep_alive)
    if kept_s == 0:
        check_unload(request, model)
        await parts.registry.residency.unload(model)
        return Response(encode_notice(kind, model.id, "unload"), media_type="application/json")
    async with parts.registry.use(model.id) as loaded:
        loaded.ready()
    headers = ignored_header([] if is_as_configured(kept_s, model) else [PARAM])
    return Response(encode_notice(kind, model.id, "load"), headers=headers, media_type="application/json")


def _add_embeddings(router: APIRouter, parts: ServerParts) -> None:
    async def computed(request: Request, job: EmbeddingJob) -> tuple[Embeddings, float, float]:
        began = time.perf_counter()
        async with parts.registry.use(job.model):
            loaded = time.perf_counter()
            job = replace(job, tenant=request.state.tenant)
            return await while_connected(request.receive, embed(parts.registry, job)), began, loaded

    @router.post("/embed", **taking(EmbedRequest, whole(OllamaEmbedAnswer)))
    async def embed_texts(request: Request) -> Response:
        """Compute a vector of each text, with an embedding model."""
        body = await read_body(request, EmbedRequest)
        model, name = resolve_named(parts.registry, body.model)
        job = decode_embed(body, name, request.state.request_id)
        headers = ignored_header(_unheard(model, body))
        try:
            found = await computed(request, job)
        except ClientGone:
            return Response(status_code=499)
        written = await asyncio.to_thread(encode_embed, *found)  # many vectors take a while to write
        return Response(written, headers=headers, media_type="application/json")

    @router.post("/embeddings", **taking(EmbeddingsRequest, whole(OllamaEmbeddingsAnswer)))
    async def embed_text(request: Request) -> Response:
        """Compute the vector of one text."""
        body = await read_body(request, EmbeddingsRequest)
        model, name = resolve_named(parts.registry, body.model)
        job = decode_embeddings(body, name, request.state.request_id)
        headers = ignored_header(_unheard(model, body))
        try:
            found, _, _ = await computed(request, job)
        except ClientGone:
            return Response(status_code=499)
        return Response(encode_embeddings(found), headers=headers, media_type="application/json")


def _unheard(model: ServedModel, body: EmbedRequest | EmbeddingsRequest) -> list[str]:
    """Return the fields without effect."""
    ignored = list(body.model_extra or ())
    return ignored if is_as_configured(read_keep_alive(body.keep_alive), model) else [*ignored, PARAM]


def _add_catalogue(router: APIRouter, parts: ServerParts) -> None:
    @router.head("/tags", include_in_schema=False)
    @router.get("/tags", responses=whole(OllamaTags))
    async def list_models() -> Response:
        """List the served models, loaded or not."""
        return JSONResponse({"models": [tag for model in parts.registry.list() for tag in encode_tags(model)]})

    @router.get("/ps", responses=whole(OllamaRunningModels))
    async def list_running() -> Response:
        """List the models in memory."""
        return JSONResponse({"models": [encode_running(model) for model in parts.registry.list() if is_running(model)]})

    @router.post("/show", **taking(ShowRequest, whole(OllamaShown)))
    async def show(request: Request) -> Response:
        """Show one served model."""
        model = resolve(parts.registry, (await read_body(request, ShowRequest)).model)
        await model.find_chat_format()
        return JSONResponse(encode_shown(model))

    @router.head("/version", include_in_schema=False)
    @router.get("/version", responses=whole(OllamaVersion))
    async def version() -> Response:
        """Return the compatible version of Ollama, and this server's own version."""
        return JSONResponse({"version": COMPATIBLE_VERSION, "pippin": __version__})


def _add_refusals(router: APIRouter, parts: ServerParts) -> None:
    @router.post("/pull", **taking(PullRequest, lines(OllamaStatus)))
    async def pull(request: Request) -> Response:
        """Confirm a model that is served; fetch nothing."""
        body = await read_body(request, PullRequest)
        try:
            resolve(parts.registry, body.model)
        except UnknownModel:
            served = ", ".join(model.id for model in parts.registry.list())
            raise NotOffered("fetch models", f"It serves: {served}. {_CONFIGURE}") from None
        return Response('{"status":"success"}\n', media_type="application/json" if body.stream is False else LINES)

    @router.post("/push", status_code=400, responses=REFUSAL)
    async def push() -> Response:
        """Refused: nothing is published."""
        raise NotOffered("publish models", "A model is a folder of files; publish that.")

    @router.post("/create", status_code=400, responses=REFUSAL)
    async def create() -> Response:
        """Refused: the configuration defines the models."""
        raise NotOffered("create models", f"`mlx_lm.convert` makes one of another's files. {_CONFIGURE}")

    @router.post("/copy", status_code=400, responses=REFUSAL)
    async def copy() -> Response:
        """Refused: another name is an alias in the configuration."""
        raise NotOffered("copy models", "Give one another name with `aliases` in its configuration.")

    @router.delete("/delete", status_code=400, responses=REFUSAL)
    async def delete() -> Response:
        """Refused: no file is removed."""
        raise NotOffered("delete models", "Take it out of the configuration, and remove its folder.")

    @router.post("/blobs/{digest}", status_code=400, responses=REFUSAL)
    async def put_blob(digest: str) -> Response:
        """Refused: no file is accepted."""
        raise NotOffered("take files", _CONFIGURE)

    @router.head("/blobs/{digest}", include_in_schema=False)
    async def find_blob(digest: str) -> Response:
        """Report that there is none."""
        return Response(status_code=404)
