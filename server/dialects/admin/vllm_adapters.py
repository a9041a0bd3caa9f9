"""`POST /v1/load_lora_adapter` and `POST /v1/unload_lora_adapter`: load and unload adapters as in vLLM."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import PlainTextResponse

from server.dialects.admin.schema import LoadAdapterRequest, UnloadAdapterRequest
from server.dialects.openai_schema import error_responses
from server.dialects.parts import ServerParts
from server.errors import InvalidRequest, ModelNotFound
from server.service.registry import ModelRegistry, ServedModel

LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
_FAILURES = error_responses(400, 404, 503)


def add_routes(router: APIRouter, parts: ServerParts) -> None:
    """Add both routes, with vLLM's answers."""

    @router.post(LOAD, responses=_FAILURES, response_class=PlainTextResponse)
    async def load_lora_adapter(body: LoadAdapterRequest) -> PlainTextResponse:
        """Load an adapter from its folder; requests name it as MODEL:NAME."""
        if body.load_inplace:
            message = "An adapter that is loaded is not replaced; unload it first."
            raise InvalidRequest(message, param="load_inplace")
        model, name = _find(parts.registry, body.lora_name, body.base_model_name)
        await model.adapters.load(parts.registry.residency, model, model.adapters.find(name, body.lora_path))
        return PlainTextResponse(f"Success: LoRA adapter '{model.name_with(name)}' added successfully.")

    @router.post(UNLOAD, responses=_FAILURES, response_class=PlainTextResponse)
    async def unload_lora_adapter(body: UnloadAdapterRequest) -> PlainTextResponse:
        """Unload an adapter when its requests are done."""
        model, name = _find(parts.registry, body.lora_name, body.base_model_name)
        if not model.adapters.is_known(name):
            raise ModelNotFound(body.lora_name, model.adapter_ids)
        await model.adapters.unload(parts.registry.residency, model, name)
        return PlainTextResponse(f"Success: LoRA adapter '{model.name_with(name)}' removed successfully.")


def _find(registry: ModelRegistry, written: str, base: str | None) -> tuple[ServedModel, str]:
    """Return the model and the name of its adapter. Raises ModelNotFound, InvalidRequest."""
    model, name = registry.split(written)
    if model is not None:
        return model, name
    model = registry.resolve(base or "")
    if registry.is_taken(model, written):
        raise InvalidRequest("A model is called so.", param="lora_name")
    return model, written
