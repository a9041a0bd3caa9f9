"""The published schema: what every route takes and answers, and that the answers are what it says.

`make fuzz` asks the server itself; here are the parts, and the golden files.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from mlx_backend.api.errors import QueueFull, SequenceFailed
from server.app import create_app
from server.config import Config
from server.dialects.health.schema import HealthReport, Version
from server.dialects.models.schema import ModelList
from server.dialects.openai_chat.schema import ChatCompletion, ChatCompletionChunk
from server.dialects.openai_completions.schema import Completion, CompletionChunk
from server.dialects.openai_schema import ErrorBody
from tests.fake_engine import FakeEngine
from tests.server.test_golden import FOLDER, objects_of
from tests.serving import build_registry, client_of

GENERATION = {"200", "400", "404", "413", "500", "503"}
TOKENS = GENERATION - {"500"}
STATUSES = {
    "/v1/completions": GENERATION,
    "/v1/chat/completions": GENERATION,
    "/v1/responses": GENERATION,
    "/v1/responses/input_tokens": TOKENS,
    "/v1/responses/{id}": {"200", "400", "404"},
    "/v1/responses/{id}/cancel": {"200", "400", "404"},
    "/v1/responses/{id}/input_items": {"200", "400", "404"},
    "/v1/embeddings": GENERATION,
    "/v1/rerank": GENERATION,
    "/v1/score": GENERATION,
    "/v1/messages": GENERATION,
    "/v1/messages/count_tokens": GENERATION,
    "/api/chat": GENERATION,
    "/api/generate": GENERATION,
    "/api/embed": GENERATION,
    "/api/embeddings": GENERATION,
    "/api/show": GENERATION,
    "/api/pull": GENERATION,
    "/api/tags": {"200"},
    "/api/ps": {"200"},
    "/api/version": {"200"},
    "/api/push": {"400"},
    "/api/create": {"400"},
    "/api/copy": {"400"},
    "/api/delete": {"400"},
    "/api/blobs/{digest}": {"400"},
    "/v1/files": {"200", "400", "404", "413", "503", "507"},
    "/v1/files/{file_id}": {"200", "404", "409"},
    "/v1/files/{file_id}/content": {"200", "404"},
    "/v1/batches": {"200", "400", "404", "413", "503", "507"},
    "/v1/batches/{batch_id}": {"200", "404"},
    "/v1/batches/{batch_id}/cancel": {"200", "404"},
    "/tokenize": TOKENS,
    "/detokenize": TOKENS,
    "/v1/models": {"200"},
    "/v1/models/{id}": {"200", "404"},
    "/admin/models": {"200"},
    "/admin/models/{id}/load": {"200", "400", "404", "503"},
    "/admin/models/{id}/unload": {"200", "400", "404", "503"},
    "/v1/load_lora_adapter": {"200", "400", "404", "503"},
    "/v1/unload_lora_adapter": {"200", "400", "404", "503"},
    "/health": {"200", "503"},
    "/ready": {"200", "503"},
    "/version": {"200"},
    "/metrics": {"200"},
    "/status": {"200", "400"},
}
ERRORS = {"ErrorBody", "MessagesError", "OllamaError"}
PROBES = {"/health", "/ready"}


def build_schema() -> dict[str, Any]:
    return create_app(Config(), build_registry(FakeEngine(), is_started=False)).openapi()


SCHEMA = build_schema()
MODELS = SCHEMA["components"]["schemas"]


def operations() -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in SCHEMA["paths"].items():
        for operation in methods.values():
            yield path, operation


def properties(model: str) -> dict[str, Any]:
    """A body's fields, each without the null that stands for its absence."""
    fields = MODELS[model]["properties"]
    return {
        name: next((form for form in field.get("anyOf", ()) if form != {"type": "null"}), field)
        for name, field in fields.items()
    }


def test_every_route_has_its_statuses() -> None:
    found: dict[str, set[str]] = {}
    for path, operation in operations():
        found.setdefault(path, set()).update(operation["responses"])
    assert found == {path: statuses | at_the_gate(path) for path, statuses in STATUSES.items()}


def at_the_gate(path: str) -> set[str]:
    """What is answered before a route is asked: of hosts and headers always, of keys and bodies where there are any."""
    with_key = set() if path in {*PROBES, "/version"} else {"401", "429"}
    with_body = {"408"} if any("requestBody" in operation for at, operation in operations() if at == path) else set()
    return {"403", "431"} | with_key | with_body


def test_every_body_and_answer_has_a_model() -> None:
    for path, operation in operations():
        if "requestBody" in operation:
            (media,) = operation["requestBody"]["content"].values()
            (form, *others) = media["schema"].get("anyOf", [media["schema"]])
            assert others in ([], [{"type": "null"}]), path  # a body may be left out
            assert "$ref" in form or path == "/v1/files", path
        for status, response in operation["responses"].items():
            for kind, media in response["content"].items():
                is_failure = status != "200" and (path not in PROBES or status in at_the_gate(path))
                if kind == "application/json":
                    name = media["schema"]["$ref"].rpartition("/")[2]
                    assert (name in ERRORS) is is_failure, (path, status)
                    assert (name == "MessagesError") <= path.startswith("/v1/messages")
                    assert (name == "OllamaError") <= path.startswith("/api/")
                    assert name.startswith("Ollama") or not path.startswith("/api/"), (path, status)


def test_only_generation_is_streamed() -> None:
    assert paths_with("text/event-stream") == {
        *("/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages"),
    }
    assert paths_with("application/octet-stream") == {"/v1/files/{file_id}/content"}
    assert paths_with("application/x-ndjson") == {"/api/chat", "/api/generate", "/api/pull"}


def paths_with(content_type: str) -> set[str]:
    answers = ((path, operation["responses"].get("200", {"content": {}})) for path, operation in operations())
    return {path for path, answer in answers if content_type in answer["content"]}


def test_every_reference_leads_somewhere() -> None:
    named = {ref.rpartition("/")[2] for ref in references(SCHEMA)}
    assert named == MODELS.keys()  # and nothing is there that nothing leads to
    assert build_schema() == SCHEMA


def references(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        yield from (value for key, value in part.items() if key == "$ref")
        part = list(part.values())
    if isinstance(part, list):
        for inner in part:
            yield from references(inner)


@pytest.mark.parametrize("model", ["CompletionRequest", "ChatRequest"])
def test_bounds_are_published(model: str) -> None:
    fields = properties(model)
    bounds = {
        name: (fields[name].get("minimum"), fields[name].get("maximum")) for name in ("n", "temperature", "min_p")
    }
    assert bounds == {"n": (1, 128), "temperature": (0, 2), "min_p": (0, 1)}
    assert fields["top_p"]["minimum"] == 0
    assert MODELS[model]["properties"]["stop"]["anyOf"][1]["maxItems"] == 16
    assert MODELS[model]["properties"]["logit_bias"]["propertyNames"] == {"pattern": "^[0-9]{1,9}$"}


def test_what_must_be_there() -> None:
    assert MODELS["CompletionRequest"]["required"] == ["prompt"]
    assert MODELS["ChatRequest"]["required"] == ["messages"]
    assert len(MODELS["CompletionRequest"]["properties"]["prompt"]["anyOf"]) == 4


# --- the answers


@pytest.mark.parametrize("path", sorted(FOLDER.iterdir()), ids=lambda path: path.name)
def test_golden_answers_are_as_published(path: Any) -> None:
    whole, chunk = (
        (ChatCompletion, ChatCompletionChunk) if path.name.startswith("chat") else (Completion, CompletionChunk)
    )
    text = path.read_text("utf-8")
    if path.suffix == ".json":
        validate(whole, text)
        return
    for event in objects_of(text):
        if event != "[DONE]" and not event.startswith(": "):
            validate(chunk, event)


def validate(model: type[BaseModel], text: str) -> None:
    (ErrorBody if "error" in json.loads(text) else model).model_validate_json(text, strict=True)


@pytest.mark.parametrize(
    ("path", "model"),
    [("/health", HealthReport), ("/ready", HealthReport), ("/version", Version), ("/v1/models", ModelList)],
)
async def test_probes_are_as_published(path: str, model: type[BaseModel]) -> None:
    async with client_of(FakeEngine()) as client:
        answer = await client.get(path)
    assert model.model_validate_json(answer.text, strict=True).model_dump(mode="json") == answer.json()


@pytest.mark.parametrize(
    ("refusal", "body", "status"),
    [
        (None, {}, 400),
        (None, {"prompt": "hi", "model": "other"}, 404),
        (None, {"prompt": "x" * (2**25 + 1)}, 413),
        (SequenceFailed("lost"), {"prompt": "hi"}, 500),
        (QueueFull(9), {"prompt": "hi"}, 503),
    ],
)
async def test_failures_are_as_published(refusal: Any, body: dict[str, Any], status: int) -> None:
    engine = FakeEngine()
    engine.refusal = refusal
    async with client_of(engine) as client:
        answer = await client.post("/v1/completions", json=body)
    assert answer.status_code == status
    ErrorBody.model_validate_json(answer.text, strict=True)
