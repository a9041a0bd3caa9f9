"""Adapters over HTTP: their names in the configuration, in lists, in requests and in answers."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest
import pytest_asyncio

from mlx_backend.api.errors import ModelLoadError
from mlx_backend.api.interface import AdapterConfig
from server.adapters import checked, read_written
from server.app import create_app
from server.config import Config
from server.config_models import read_models
from server.config_sources import ConfigError, Given
from server.models import build_models
from server.service.adapters import AdapterSet
from server.service.registry import ModelRegistry, ServedModel
from server.text.tokenizer import ByteTokenizer
from tests.fake_engine import FakeEngine
from tests.serving import wait_until


def test_adapters_are_written_as_names_and_folders() -> None:
    assert read_written(None) == read_written(" , ") == ()
    assert read_written("a=/x/y, b=~/z=1") == (AdapterConfig("a", "/x/y"), AdapterConfig("b", "~/z=1"))


@pytest.mark.parametrize("written", ["a", "=x", "a=", "a=x,a=y", "a:b=x", "a/b=x", "ä ö=x"])
def test_other_adapters_are_refused(written: str) -> None:
    with pytest.raises(ValueError, match="adapter"):
        read_written(written)
    with pytest.raises(ModelLoadError):
        build_models(Config(backend="mock", adapters=written))


def test_adapters_of_one_of_several_models_are_a_mapping() -> None:
    (entry,) = read_models(Given({"m": {"model": "x", "adapters": {"a": "/x"}}}, "file"), ())
    assert entry.adapters == checked([("a", "/x")])


@pytest.mark.parametrize(
    "models",
    [
        {"m": {"model": "x", "adapters": ["a"]}},
        {"m": {"model": "x", "adapters": {"a": 1}}},
        {"m": {"model": "x", "adapters": {1: "a"}}},
        {"m": {"model": "x", "adapters": {"a": "/x"}}, "m:a": "y"},
    ],
)
def test_other_adapters_of_several_models_are_refused(models: object) -> None:
    with pytest.raises(ConfigError):
        read_models(Given(models, "file"), ())


def test_a_folder_without_an_adapter_is_refused_at_once(tmp_path: object) -> None:
    with pytest.raises(ModelLoadError, match=r"adapter a: .* has no adapter_config.json"):
        build_models(Config(model="pocket", adapters=f"a={tmp_path}"))


def test_names_with_an_adapter_are_the_model_and_the_adapter() -> None:
    model = ServedModel(
        "m",
        FakeEngine(),
        ByteTokenizer,
        aliases=("other", "m:taken", "gpt-*"),
        adapters=AdapterSet(checked([("a", "/a"), ("taken", "/b")])),
    )
    registry = ModelRegistry([model])
    for name, adapter in (("m", ""), ("m:a", "a"), ("other:a", "a"), ("m:taken", ""), ("gpt-x", ""), ("", "")):
        assert registry.resolve(name) is model
        assert registry.adapter_of(name) == adapter


@pytest_asyncio.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    config = Config(backend="mock", adapters="sql=/x,poet=/y")
    registry = ModelRegistry(build_models(config))
    registry.start()
    (model,) = registry.list()
    wait_until(lambda: model.state == "loaded")
    transport = httpx.ASGITransport(create_app(config, registry))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        yield client
    await registry.close()


async def test_adapters_are_listed_beside_their_model(client: httpx.AsyncClient) -> None:
    listed = (await client.get("/v1/models")).json()["data"]
    assert [(each["id"], each["parent"]) for each in listed] == [
        ("mock", None),
        ("mock:sql", "mock"),
        ("mock:poet", "mock"),
    ]
    assert [each["name"] for each in listed[0]["pippin"]["adapters"]] == ["sql", "poet"]
    assert (await client.get("/v1/models/mock:sql")).json()["parent"] == "mock"
    anthropic = {"anthropic-version": "2023-06-01"}
    listed = (await client.get("/v1/models", headers=anthropic)).json()["data"]
    assert [each["id"] for each in listed] == ["mock", "mock:sql", "mock:poet"]
    assert (await client.get("/v1/models/mock:poet", headers=anthropic)).json()["id"] == "mock:poet"
    tags = (await client.get("/api/tags")).json()["models"]
    assert [(each["name"], each["details"]["parent_model"]) for each in tags][1:] == [
        ("mock:sql", "mock"),
        ("mock:poet", "mock"),
    ]
    assert len({each["digest"] for each in tags}) == 3


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "a long enough prompt to be kept " * 9, "max_tokens": 2}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hello " * 50}], "max_tokens": 2}),
        ("/v1/messages", {"messages": [{"role": "user", "content": "hello " * 50}], "max_tokens": 2}),
        ("/v1/responses", {"input": "hello " * 50, "max_output_tokens": 16}),
        ("/api/chat", {"messages": [{"role": "user", "content": "hello " * 50}], "stream": False}),
        ("/api/generate", {"prompt": "hello " * 50, "stream": False}),
        ("/v1/embeddings", {"input": "hello"}),
        ("/api/embed", {"input": "hello"}),
    ],
)
async def test_every_api_knows_an_adapter_by_its_name(
    client: httpx.AsyncClient, path: str, body: dict[str, object]
) -> None:
    answer = await client.post(path, json={"model": "mock:sql", **body})
    assert answer.status_code == 200, answer.text
    assert answer.json()["model"] == "mock:sql"
    unknown = await client.post(path, json={"model": "mock:other", **body})
    assert unknown.status_code == 404
    assert "mock:sql" in unknown.text or path.startswith("/api"), unknown.text


async def test_what_one_adapter_has_computed_no_other_takes(client: httpx.AsyncClient) -> None:
    async def cached(model: str) -> int:
        body = {"model": model, "prompt": "a long enough prompt to be kept " * 40, "max_tokens": 2}
        usage = (await client.post("/v1/completions", json=body)).json()["usage"]
        return int((usage["prompt_tokens_details"] or {}).get("cached_tokens", 0))

    assert [await cached(name) for name in ("mock", "mock:sql", "mock:poet")] == [0, 0, 0]
    assert min([await cached(name) for name in ("mock", "mock:sql", "mock:poet")]) > 0
