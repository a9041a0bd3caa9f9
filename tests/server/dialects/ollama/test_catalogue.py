"""What is served, as the official client reads it; and what this server does not do, with what to do instead."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import httpx
import ollama
import pytest

from server import __version__
from server.app import create_app
from server.config import Config
from server.dialects.ollama.catalogue import _short
from server.dialects.ollama.published import (
    OllamaRunningModels,
    OllamaShown,
    OllamaStatus,
    OllamaTags,
    OllamaVersion,
)
from server.dialects.openai_schema import AnswerModel
from server.service.registry import ModelRegistry, ServedModel
from tests.server.dialects.ollama.served import Numbered, Served, serving


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving() as served:
        yield served


async def test_the_list(served: Served) -> None:
    (model,) = (await served.sdk().list()).models
    assert (model.model, model.size) == ("mock", 4_275_000_000)
    assert model.modified_at is not None and len(model.digest or "") == 64
    assert model.details is not None
    assert (model.details.format, model.details.parameter_size, model.details.quantization_level) == (
        *("mlx", "7.6B", "4.5 bits"),
    )


async def test_what_is_in_memory(served: Served) -> None:
    (model,) = (await served.sdk().ps()).models
    assert (model.name, model.model, model.context_length, model.size_vram) == ("mock", "mock", 4096, 4_275_000_000)
    assert model.expires_at is not None


async def test_one_model(served: Served) -> None:
    shown = await served.sdk().show("mock:latest")
    assert shown.capabilities == ["completion", "tools", "thinking"]
    assert shown.modelinfo is not None
    architecture = shown.modelinfo["general.architecture"]
    assert shown.modelinfo[f"{architecture}.context_length"] == 4096
    assert shown.template == "{{ .System }}{{ .Messages }}{{ .Tools }}{{ .Thinking }}"
    async with served.http() as client:
        by_name = await client.post("/api/show", json={"name": "mock"})
    assert by_name.json()["capabilities"] == shown.capabilities
    with pytest.raises(ollama.ResponseError, match="'llama3' not found") as raised:
        await served.sdk().show("llama3")
    assert raised.value.status_code == 404


@pytest.mark.parametrize(
    ("error", "capabilities"), [(None, ["completion", "tools", "thinking"]), (OSError("no file"), ["completion"])]
)
async def test_what_a_model_can_do_is_known_before_it_is_loaded(error: OSError | None, capabilities: list[str]) -> None:
    num_read = 0

    def load() -> Numbered:
        nonlocal num_read
        num_read += 1
        if error is not None:
            raise error
        return Numbered()

    model = ServedModel("mock", None, load, is_required=False)
    app = create_app(Config(), ModelRegistry([model]))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        answers = [client.post("/api/show", json={"model": "mock"}) for _ in range(3)]
        found = [answer.json()["capabilities"] for answer in await asyncio.gather(*answers)]
    assert found == [capabilities] * 3
    assert (num_read, model.state) == (1, "unloaded")


async def test_versions(served: Served) -> None:
    async with served.http() as client:
        version = await client.get("/api/version")
        heads = [await client.head(path) for path in ("/", "/api/tags", "/api/version")]
        root = await client.get("/")
    found = version.json()
    assert tuple(map(int, found["version"].split("."))) >= (0, 13, 4)  # codex takes no less
    assert found["pippin"] == __version__
    assert [(head.status_code, head.text) for head in heads] == [(200, "")] * 3
    assert root.text == "Ollama is running"


async def test_answers_are_as_published(served: Served) -> None:
    async with served.http() as client:
        found = [await client.get(f"/api/{path}") for path in ("tags", "ps", "version")]
        found += [
            await client.post(f"/api/{path}", json={"model": "mock", "stream": False}) for path in ("show", "pull")
        ]
    published: list[type[AnswerModel]] = [OllamaTags, OllamaRunningModels, OllamaVersion, OllamaShown, OllamaStatus]
    for answer, model in zip(found, published, strict=True):
        model.model_validate_json(answer.content, strict=True)


async def test_what_is_here_is_pulled_at_once(served: Served) -> None:
    sdk = served.sdk()
    assert (await sdk.pull("mock")).status == "success"
    assert [part.status async for part in await sdk.pull("mock:latest", stream=True)] == ["success"]
    with pytest.raises(ollama.ResponseError, match=r"does not fetch models over HTTP.*`pippin pull`") as raised:
        await sdk.pull("llama3")
    assert raised.value.status_code == 400


async def test_what_it_does_not_do(served: Served) -> None:
    sdk = served.sdk()
    with pytest.raises(ollama.ResponseError, match="does not create models"):
        await sdk.create("mine", from_="mock")
    with pytest.raises(ollama.ResponseError, match="does not publish models"):
        await sdk.push("mock")
    with pytest.raises(ollama.ResponseError, match=r"does not copy models.*`aliases`"):
        await sdk.copy("mock", "mine")
    with pytest.raises(ollama.ResponseError, match="does not delete models"):
        await sdk.delete("mock")
    async with served.http() as client:
        assert (await client.head("/api/blobs/sha256:12")).status_code == 404
        assert (await client.post("/api/blobs/sha256:12", content=b"{}")).status_code == 400


@pytest.mark.parametrize(
    ("number", "short"),
    [(1, "1"), (7_600_000_000, "7.6B"), (494_000_000, "494.0M"), (671e9, "671.0B"), (1.5e12, "1.5T")],
)
def test_numbers_of_parameters(number: float, short: str) -> None:
    assert _short(int(number)) == short
