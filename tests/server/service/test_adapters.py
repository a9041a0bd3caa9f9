"""Adapters that an admin has come and go: names, folders, and what requests are told meanwhile. The mock backend."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from mlx_backend.api.interface import AdapterConfig, MockConfig
from server.app import create_app
from server.config import Config
from server.config_models import ModelEntry
from server.models import build_models
from server.service.registry import ModelRegistry
from tests.serving import wait_until


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("root")
    (root / "outside").mkdir()
    for name in ("a", "b", "c", "deep/d"):
        (root / "adapters" / name).mkdir(parents=True)
    (root / "adapters" / "file").touch()
    (root / "adapters" / "link").symlink_to(root / "outside")
    return root / "adapters"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def registry(folder: Path) -> AsyncIterator[ModelRegistry]:
    entries = (
        ModelEntry(name="m", model="mock", aliases=("n", "*"), adapters=(AdapterConfig("own", "/own"),)),
        ModelEntry(
            name="mario",
            model="mock",
            adapters=(AdapterConfig("mario", "/mario"), AdapterConfig("luigi", "/luigi")),
            adapter="mario",
        ),
        ModelEntry(name="m:taken", model="mock"),
    )
    config = Config(backend="mock", models=entries, adapters_folder=str(folder), mock=MockConfig(ttft_s=0, itl_s=0.001))
    registry = ModelRegistry(build_models(config))
    yield registry
    await registry.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(registry: ModelRegistry, folder: Path) -> AsyncIterator[httpx.AsyncClient]:
    config = Config(backend="mock", adapters_folder=str(folder))
    transport = httpx.ASGITransport(create_app(config, registry))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=60) as client:
        yield client


pytestmark = pytest.mark.asyncio(loop_scope="module")


async def change(client: httpx.AsyncClient, name: str, how: str, folder: str | None = None) -> httpx.Response:
    return await client.post(f"/admin/models/{name}/{how}", json=None if folder is None else {"folder": folder})


async def ask(client: httpx.AsyncClient, model: str, max_tokens: int = 3) -> httpx.Response:
    body = {"model": model, "prompt": "hello " * 9, "max_tokens": max_tokens, "ignore_eos": True}
    return await client.post("/v1/completions", json=body)


async def listed(client: httpx.AsyncClient) -> list[str]:
    return [each["id"] for each in (await client.get("/v1/models")).json()["data"]]


async def states(client: httpx.AsyncClient, model: int = 0) -> dict[str, str]:
    found = (await client.get("/admin/models")).json()["data"][model]["adapters"]
    return {each["name"]: each["state"] for each in found}


async def test_an_adapter_is_loaded_listed_asked_and_unloaded(client: httpx.AsyncClient) -> None:
    assert (await ask(client, "m:x")).json()["model"] == "m"  # by the alias *: there is no such adapter
    for _ in range(2):
        answer = await change(client, "m:a", "load")
        assert answer.status_code == 200, answer.text
    assert await states(client) == {"own": "loaded", "a": "loaded"}
    assert "m:a" in await listed(client)
    assert (await ask(client, "m:a")).json()["model"] == "m:a"
    assert (await ask(client, "n:a")).json()["model"] == "m:a"
    for _ in range(2):
        assert (await change(client, "m:own", "unload")).status_code == 200
    assert await states(client) == {"own": "unloaded", "a": "loaded"}
    assert "m:own" not in await listed(client)
    assert (await change(client, "m:a", "unload")).status_code == 200
    assert (await change(client, "m:own", "load")).status_code == 200
    assert await states(client) == {"own": "loaded"}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "x"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "stream": True}),
        ("/v1/messages", {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2}),
        ("/v1/responses", {"input": "x"}),
        ("/api/chat", {"messages": [{"role": "user", "content": "x"}]}),
        ("/api/generate", {"prompt": "x"}),
        ("/v1/embeddings", {"input": "x"}),
        ("/api/embed", {"input": "x"}),
        ("/tokenize", {"prompt": "x"}),
    ],
)
async def test_an_unloaded_adapter_is_404_in_every_api_though_an_alias_would_match(
    client: httpx.AsyncClient, path: str, body: dict[str, object]
) -> None:
    await change(client, "m:own", "unload")
    answer = await client.post(path, json={"model": "m:own", **body})
    await change(client, "m:own", "load")
    assert answer.status_code == 404
    assert ("is not loaded" in answer.text) or path.startswith("/api"), answer.text
    assert "m:own" in answer.text


async def test_an_adapter_stays_as_it_was_when_its_model_comes_back(client: httpx.AsyncClient) -> None:
    for name, how in (("m:own", "unload"), ("m:b", "load"), ("m", "unload"), ("m:a", "load")):
        assert (await change(client, name, how)).status_code == 200
    assert await states(client) == {"own": "unloaded", "b": "loaded", "a": "loaded"}
    assert (await ask(client, "m:b")).json()["model"] == "m:b"
    await change(client, "m", "unload")
    assert (await change(client, "m:b", "unload")).json()["state"] == "unloaded"  # for that it is not loaded
    assert (await ask(client, "m:a")).json()["model"] == "m:a"
    for name, how in (("m:a", "unload"), ("m:own", "load")):
        assert (await change(client, name, how)).status_code == 200


@pytest.mark.parametrize(
    ("written", "status"),
    [
        ("a", 200),
        ("deep/d", 200),
        ("deep/../b", 200),
        ("/own", 200),
        ("{root}/adapters/c", 200),
        ("", 400),
        (".", 400),
        ("..", 400),
        ("file", 400),
        ("link", 400),
        ("nothing", 400),
        ("../outside", 400),
        ("{root}/outside", 400),
        ("{root}/adapters/../outside", 400),
        ("/etc", 400),
        ("~", 400),
        ("\0", 400),
        ("x" * 5000, 400),
        ("x" * 300, 400),
        ("/own/", 400),
    ],
)
async def test_only_folders_of_the_configuration_are_read(
    client: httpx.AsyncClient, folder: Path, written: str, status: int
) -> None:
    root = str(folder.parent)
    answer = await change(client, "m:new", "load", written.replace("{root}", root))
    assert answer.status_code == status, answer.text
    await change(client, "m:new", "unload")
    if status == 400:
        assert root not in answer.text
        assert answer.json()["error"]["param"] == "folder"


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/admin/models/m:/load", None, 400),
        ("/admin/models/m:a%20b/load", None, 400),
        ("/admin/models/m:a/load", {"folder": 3}, 400),
        ("/admin/models/m:a/load", {"path": "a"}, 400),
        ("/admin/models/m/load", {"folder": "a"}, 400),
        ("/admin/models/m:own/load", {"folder": "a"}, 400),
        ("/admin/models/m:own/unload?force=true", None, 400),
        ("/admin/models/mario:mario/unload", None, 400),
        ("/admin/models/mario:nothing/unload", None, 200),
        ("/v1/load_lora_adapter", {"lora_name": "a", "lora_path": "a"}, 400),
        ("/v1/load_lora_adapter", {"lora_name": "m:a", "lora_path": "/etc"}, 400),
        ("/v1/load_lora_adapter", {"lora_name": "m:a"}, 400),
        ("/v1/load_lora_adapter", {"lora_name": "m:a", "lora_path": "a", "load_inplace": True}, 400),
        ("/v1/load_lora_adapter", {"lora_name": "taken", "lora_path": "a", "base_model_name": "m"}, 400),
        ("/v1/unload_lora_adapter", {"lora_name": "mario:nothing"}, 404),
    ],
)
async def test_what_cannot_be_is_refused(
    client: httpx.AsyncClient, path: str, body: dict[str, object] | None, status: int
) -> None:
    before = await states(client), await states(client, 1)
    answer = await client.post(path, json=body)
    assert answer.status_code == status, answer.text
    assert (await states(client), await states(client, 1)) == before


async def test_vllms_names(client: httpx.AsyncClient) -> None:
    body = {"lora_name": "a", "lora_path": "a", "base_model_name": "m"}
    answer = await client.post("/v1/load_lora_adapter", json=body)
    assert (answer.status_code, answer.text) == (200, "Success: LoRA adapter 'm:a' added successfully.")
    assert (await ask(client, "m:a")).json()["model"] == "m:a"
    answer = await client.post("/v1/unload_lora_adapter", json={"lora_name": "m:a"})
    assert (answer.status_code, answer.text) == (200, "Success: LoRA adapter 'm:a' removed successfully.")
    assert "a" not in await states(client)


async def test_a_running_answer_is_finished_and_no_new_one_begins(
    client: httpx.AsyncClient, registry: ModelRegistry
) -> None:
    await change(client, "m:a", "load")
    running = asyncio.ensure_future(ask(client, "m:a", 400))
    engine = registry.list()[0].engine
    while not engine.stats().num_running:
        await asyncio.sleep(0.001)
    going = [asyncio.ensure_future(change(client, "m:a", "unload")) for _ in range(3)]
    while (await states(client))["a"] != "unloading":
        await asyncio.sleep(0.001)
    going.pop().cancel()  # a client that leaves changes nothing
    assert (await ask(client, "m:a")).status_code == 404
    refused = await change(client, "m:a", "load")
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "adapter_refused")
    assert (await change(client, "m:b", "load")).status_code == 200
    assert not running.done()
    assert [answer.status_code for answer in await asyncio.gather(*going)] == [200, 200]
    assert (await running).json()["usage"]["completion_tokens"] == 400
    assert await states(client) == {"own": "loaded", "b": "loaded"}
    await change(client, "m:b", "unload")


async def test_a_default_adapter_is_the_models_own(client: httpx.AsyncClient, registry: ModelRegistry) -> None:
    assert [name for name in await listed(client) if name.startswith("mario")] == ["mario", "mario:luigi"]
    assert registry.adapter_of("mario") == registry.adapter_of("mario:mario") == "mario"
    for name in ("mario", "mario:mario"):
        assert (await ask(client, name)).json()["model"] == "mario"
    assert (await ask(client, "mario:luigi")).json()["model"] == "mario:luigi"
    answers = await change(client, "mario", "load")
    assert [(each["name"], each["is_default"]) for each in answers.json()["adapters"]] == [
        ("mario", True),
        ("luigi", False),
    ]


async def test_a_flood_of_changes_and_requests(client: httpx.AsyncClient) -> None:
    async def turn(number: int) -> set[int]:
        name, found = f"m:{'abc'[number % 3]}", set()
        for _ in range(6):
            for answer in (change(client, name, "load"), ask(client, name), change(client, name, "unload")):
                found.add((await answer).status_code)
        return found

    assert set().union(*await asyncio.gather(*(turn(number) for number in range(12)))) <= {200, 400, 404}
    assert (await client.get("/health")).json()["status"] == "ok"
    for name in "abc":
        await change(client, f"m:{name}", "unload")
    assert await states(client) == {"own": "loaded"}


async def test_without_a_folder_only_configured_ones_come(folder: Path) -> None:
    config = Config(backend="mock", adapters=f"own={folder / 'a'}")
    registry = ModelRegistry(build_models(config))
    registry.start()
    (model,) = registry.list()
    wait_until(lambda: model.state == "loaded")
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(create_app(config, registry)), base_url="http://localhost"
    ) as client:
        for name, where, status in (("b", None, 400), ("b", "b", 400), ("b", str(folder / "a"), 200)):
            answer = await change(client, f"mock:{name}", "load", where)
            assert answer.status_code == status, answer.text
        assert (await ask(client, "mock:b")).json()["model"] == "mock:b"
        assert (await ask(client, "mock:x")).status_code == 404
    await registry.close()
