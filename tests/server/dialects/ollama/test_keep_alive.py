"""How long a model is kept: durations as clients write them, and models that come and go, within what is configured."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from math import inf
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.app import create_app
from server.config import Config, SecurityConfig
from server.dialects.ollama.keep_alive import is_as_configured, read_keep_alive
from server.errors import InvalidRequest
from server.security import keys
from tests.server.service.test_residency import BOTH, mock_model, served

HI = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        *[(None, None), (0, 0), ("0", 0), ("0s", 0), (300, 300), (1.5, 1.5), ("10", 10), ("5m", 300), ("1h30m", 5400)],
        *[("1.5h", 5400), ("300ms", 0.3), ("+5s", 5), (-1, inf), ("-1", inf), ("-1s", inf), ("-5m", inf)],
        *[(10**300, 1e12), ("999999h", 999999 * 3600)],
    ],
)
def test_durations(written: Any, seconds: float | None) -> None:
    assert read_keep_alive(written) == seconds


@pytest.mark.parametrize(
    "written", ["", "-", "5 minutes", "m", "5x", "5m ", "1h-5m", ".", "\u0663s", "1e3", "inf", "nan"]
)
def test_what_is_no_duration(written: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        read_keep_alive(written)
    assert raised.value.param == "keep_alive"


@settings(max_examples=40)
@given(st.text("0123456789.hmsnuµ-+ ", max_size=40))
def test_any_text_is_a_duration_or_refused(text: str) -> None:
    try:
        found = read_keep_alive(text)
    except InvalidRequest:
        return
    assert found is not None and found >= 0


@pytest.mark.parametrize(
    ("seconds", "keep_alive_s", "is_pinned", "is_kept"),
    [
        *[(None, 60.0, False, True), (60.0, 60.0, False, True), (inf, None, False, True), (inf, 60.0, True, True)],
        *[
            (300.0, 60.0, False, False),
            (inf, 60.0, False, False),
            (300.0, None, True, False),
            (0.0, 60.0, False, False),
        ],
    ],
)
def test_the_configuration_says_how_long(
    seconds: float | None, keep_alive_s: float | None, is_pinned: bool, is_kept: bool
) -> None:
    model: Any = SimpleNamespace(keep_alive_s=keep_alive_s, is_pinned=is_pinned)
    assert is_as_configured(seconds, model) is is_kept


@asynccontextmanager
async def client_of(security: SecurityConfig | None = None, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    """Of a server with the models a and b, which come and go, and c, which is pinned."""
    models = [mock_model("a", BOTH), mock_model("b", BOTH), mock_model("c", BOTH, is_pinned=True)]
    async with served(*models) as (registry, _):
        app = create_app(Config(security=security or SecurityConfig()), registry)
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", **options) as client:
            yield client


async def running(client: httpx.AsyncClient) -> list[str]:
    return [model["name"] for model in (await client.get("/api/ps")).json()["models"]]


async def ask(client: httpx.AsyncClient, path: str = "chat", **body: Any) -> httpx.Response:
    return await client.post(f"/api/{path}", json=body)


async def until_running(client: httpx.AsyncClient, names: list[str]) -> None:
    async with asyncio.timeout(120):
        while await running(client) != names:
            await asyncio.sleep(0.005)


async def test_models_come_and_go() -> None:
    async with client_of() as client:
        loaded = await ask(client, model="a")
        assert (loaded.json()["done_reason"], loaded.json()["message"]["content"]) == ("load", "")
        await ask(client, "generate", model="c", prompt="")
        assert await running(client) == ["a", "c"]
        shown = {model["name"]: model["expires_at"] for model in (await client.get("/api/ps")).json()["models"]}
        assert set(shown.values()) == {"0001-01-01T00:00:00Z"}
        unloaded = await ask(client, "generate", model="a:latest", keep_alive=0)
        assert (unloaded.json()["done_reason"], unloaded.json()["response"]) == ("unload", "")
        pinned = await ask(client, model="c", keep_alive="0s")
        assert (pinned.status_code, "pinned" in pinned.json()["error"]) == (400, True)
        assert await running(client) == ["c"]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_model_goes_after_its_answer(stream: bool) -> None:
    async with client_of() as client:
        body: Any = {"messages": HI, "stream": stream, "options": {"num_predict": 3}, "keep_alive": 0}
        answer = await ask(client, model="a", **body)
        assert answer.status_code == 200
        assert "x-pippin-ignored-fields" not in answer.headers
        await until_running(client, [])
        stays = await ask(client, model="c", **body)
        assert stays.headers["x-pippin-ignored-fields"] == "keep_alive"
        assert await running(client) == ["c"]


async def test_only_an_operator_has_a_model_go(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    user, admin = keys.add(file, "alice"), keys.add(file, "root", is_admin=True)
    async with client_of(SecurityConfig(keys_file=str(file))) as client:
        assert (await ask(client, model="a")).status_code == 401
        client.headers["Authorization"] = f"Bearer {user}"
        assert (await ask(client, model="a")).status_code == 200
        refused = await ask(client, model="a", keep_alive=0)
        assert (refused.status_code, "--admin" in refused.json()["error"]) == (403, True)
        answer = await ask(client, model="a", messages=HI, options={"num_predict": 1}, keep_alive=0)
        assert answer.headers["x-pippin-ignored-fields"] == "keep_alive"
        assert await running(client) == ["a"]
        client.headers["Authorization"] = f"Bearer {admin}"
        assert (await ask(client, model="a", keep_alive=0)).json()["done_reason"] == "unload"


async def test_a_page_of_this_machine_has_no_model_go() -> None:
    async with client_of() as client:
        await ask(client, model="a")
        client.headers["Origin"] = "http://localhost:3000"
        assert (await ask(client, model="a", keep_alive=0)).status_code == 403
        assert await running(client) == ["a"]
