"""`/admin/models`: what is in memory, and having it loaded and unloaded."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from mlx_backend.api.interface import MemoryConfig
from server.app import create_app
from server.config import Config
from server.config_models import ModelEntry
from server.models import build_models
from server.service.registry import ModelRegistry

ENTRIES = (
    ModelEntry(name="a", model="mock", aliases=("gpt-a",), keep_alive_s=60.0),
    ModelEntry(name="org/b", model="mock"),
)


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    config = Config(backend="mock", models=ENTRIES, memory=MemoryConfig(limit_gb=0.0014))
    registry = ModelRegistry(build_models(config))
    transport = httpx.ASGITransport(create_app(config, registry))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        yield client
    await registry.close()


async def states(client: httpx.AsyncClient) -> list[str]:
    listed = (await client.get("/v1/models")).json()["data"]
    assert [model["state"] for model in (await client.get("/admin/models")).json()["data"]] == [
        model["state"] for model in listed
    ]
    return [model["state"] for model in listed]


async def test_load_and_unload(client: httpx.AsyncClient) -> None:
    assert await states(client) == ["unloaded", "unloaded"]
    for _ in range(2):
        answer = await client.post("/admin/models/gpt-a/load")
        assert (answer.status_code, answer.json()["state"]) == (200, "loaded")
    assert answer.json()["memory_bytes"] == 1_400_000
    assert (await client.post("/admin/models/org/b/load")).json()["id"] == "org/b"
    assert await states(client) == ["unloaded", "loaded"]
    for _ in range(2):
        answer = await client.post("/admin/models/org/b/unload", params={"force": True})
        assert (answer.status_code, answer.json()["state"]) == (200, "unloaded")
    assert (answer.json()["memory_bytes"], answer.json()["weights_bytes"]) == (None, 1 << 20)
    assert await states(client) == ["unloaded", "unloaded"]


async def test_what_is_told_of_a_model(client: httpx.AsyncClient) -> None:
    completion = await client.post("/v1/completions", json={"model": "a", "prompt": "x", "max_tokens": 5})
    assert completion.json()["model"] == "a"
    model = (await client.get("/admin/models")).json()["data"][0]
    assert (model["id"], model["aliases"], model["pinned"], model["keep_alive_s"]) == ("a", ["gpt-a"], False, 60.0)
    assert (model["state"], model["num_users"], model["num_running"]) == ("loaded", 0, 0)
    assert model["num_output_tokens"] == 5
    assert model["idle_s"] >= 0


async def test_every_way_to_a_model_loads_it(client: httpx.AsyncClient) -> None:
    ways: list[tuple[str, dict[str, Any]]] = [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}),
        ("/v1/embeddings", {"input": "x"}),
        ("/tokenize", {"prompt": "x"}),
        ("/detokenize", {"tokens": [65]}),
        ("/v1/completions", {"prompt": "x", "stream": True}),
    ]
    for place, (path, body) in enumerate(ways):
        name, state = (("a", ["loaded", "unloaded"]), ("org/b", ["unloaded", "loaded"]))[place % 2]
        assert (await client.post(path, json={"model": name, **body})).status_code == 200
        assert await states(client) == state
    users = [model["num_users"] for model in (await client.get("/admin/models")).json()["data"]]
    assert users == [0, 0]


async def test_a_refused_request_holds_nothing(client: httpx.AsyncClient) -> None:
    refused = await client.post("/v1/completions", json={"model": "a", "prompt": "x" * 10**6})
    assert refused.status_code == 400
    assert (await client.get("/admin/models")).json()["data"][0]["num_users"] == 0


@pytest.mark.parametrize("what", ["load", "unload"])
async def test_an_unknown_model(client: httpx.AsyncClient, what: str) -> None:
    answer = await client.post(f"/admin/models/nobody/{what}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


async def test_what_is_loaded_on_demand_does_not_make_the_server_unready(client: httpx.AsyncClient) -> None:
    for path in ("/health", "/ready"):
        answer = await client.get(path)
        assert (answer.status_code, answer.json()["status"]) == (200, "ok")
        assert [model["status"] for model in answer.json()["models"]] == ["ok", "ok"]
