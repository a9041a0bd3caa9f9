"""`/status`: what is told of models, open requests, errors and settings, and what never is."""

from __future__ import annotations

import threading
from typing import Any

import httpx
import pytest

from mlx_backend.api.interface import (
    EngineHealth,
    KVCachePart,
    KVCacheReport,
    LoadProgress,
    MemoryReport,
    ModelInfo,
    PrefixCacheConfig,
    PrefixCacheReport,
)
from server.app import create_app
from server.config import Config, SecurityConfig, fields
from server.dialects.dashboard.encode import MAX_REQUESTS, encode_settings
from server.dialects.dashboard.schema import StatusReport
from server.service.live import LiveRequest, LiveState
from tests.fake_engine import HANG, FakeEngine, one_by_one
from tests.serving import build_registry, client_of, mock_engine, serve, wait_until

SECRET = "the-words-of-a-client"


def part(name: str, bits: int | None) -> KVCachePart:
    return KVCachePart(name=name, num_heads=8, dim=128, requested_bits=bits, bits=bits, group_size=64)


INFO = ModelInfo(
    context_limit=64,
    context_limited_by="memory",
    vocab_size=260,
    weights_bytes=700,
    kv_caches=(
        KVCacheReport(kind="plain", num_layers=4, parts=(part("keys", 8), part("values", 4)), bytes_per_token=10),
        KVCacheReport(kind="rotating", num_layers=2, window=1024, parts=(part("keys", None),), bytes_per_token=5),
    ),
    memory=MemoryReport(
        limit_bytes=1000, limit_basis="the system", weights_bytes=700, reserve_bytes=100, raise_command="sysctl"
    ),
    prefix_cache=PrefixCacheReport(ram_bytes=50, folder="/home/anna/kept", max_bytes=900),
)


async def ask(engine: FakeEngine, path: str = "/status") -> dict[str, Any]:
    async with client_of(engine) as client:
        answer = await client.get(path)
    assert answer.status_code == 200
    StatusReport.model_validate_json(answer.text, strict=True)
    found: dict[str, Any] = answer.json()
    return found


# --- one model


async def test_a_model() -> None:
    (model,) = (await ask(FakeEngine(info=INFO)))["models"]
    assert (model["id"], model["state"], model["health"]) == ("mock", "loaded", "ok")
    assert model["details"]["kv_cache"] == [
        "4 x plain in 8 bits, 4 bits",
        "2 x rotating of 1,024 tokens in full precision",
    ]
    assert model["details"]["kv_precision"] == "8 bits and 4 bits and full precision"
    assert model["details"]["kv_bytes_per_token"] == 50
    assert {key: model["memory"][key] for key in ("limit_bytes", "weights_bytes", "reserve_bytes")} == {
        "limit_bytes": 1000,
        "weights_bytes": 700,
        "reserve_bytes": 100,
    }
    assert (model["memory"]["limit_basis"], model["memory"]["raise_command"]) == ("the system", "sysctl")
    kept = model["prefix_cache"]
    assert (kept["is_on_disk"], kept["max_ram_bytes"], kept["max_disk_bytes"]) == (True, 50, 900)
    assert model["requests"] == []


async def test_folders_are_not_told() -> None:
    async with client_of(FakeEngine(info=INFO)) as client:
        assert "anna" not in (await client.get("/status")).text


async def test_a_model_that_loads() -> None:
    engine = FakeEngine(is_loaded=False)
    engine.state = EngineHealth(status="loading", detail="reading", load=LoadProgress(done_bytes=1, total_bytes=4))
    report = await ask(engine)
    (model,) = report["models"]
    assert (report["health"], model["state"], model["load_percent"]) == ("loading", "loading", 25.0)
    assert model["details"] is None
    assert (model["memory"]["limit_bytes"], model["memory"]["weights_bytes"]) == (None, 0)


# --- open requests


def test_an_open_request_is_told_and_its_words_are_not() -> None:
    with serve(mock_engine(itl_s=0.01)) as server, httpx.Client(base_url=server.url) as client:
        body = {"messages": [{"role": "user", "content": SECRET}], "max_tokens": 4000, "stream": True}
        headers = {"x-request-id": "mine"}
        with client.stream("POST", "/v1/chat/completions", json=body, headers=headers) as answer:
            lines = answer.iter_lines()
            written = "".join(next(lines) for _ in range(20))
            found = httpx.get(f"{server.url}/status")
            (request,) = found.json()["models"][0]["requests"]
        assert "mine" in request["id"]
        assert (request["kind"], request["state"], request["max_output_tokens"]) == ("generation", "writing", 4000)
        assert request["num_computed_tokens"] == request["num_prompt_tokens"] > len(SECRET)
        assert 0 < request["num_output_tokens"] < 4000
        assert request["age_s"] > 0
        assert '"content"' in written
        assert SECRET not in found.text
        wait_until(lambda: not httpx.get(f"{server.url}/status").json()["models"][0]["requests"])


async def test_a_request_that_waits_and_one_that_reads() -> None:
    engine = FakeEngine([HANG])
    app = create_app(Config(), build_registry(engine))
    (model,) = app.parts.registry.list()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as client:
        leave = model.measures.live.add(lambda: live("waiting"))
        model.measures.live.add(lambda: live("writing"))
        for _ in range(MAX_REQUESTS):
            model.measures.live.add(lambda: live("reading"))
        told = (await client.get("/status")).json()["models"][0]
        leave()
        later = (await client.get("/status")).json()["models"][0]
    assert told["num_requests"] == MAX_REQUESTS + 2
    assert [request["state"] for request in told["requests"]] == ["writing", *["reading"] * (MAX_REQUESTS - 1)]
    assert later["num_requests"] == MAX_REQUESTS + 1


def live(state: LiveState) -> LiveRequest:
    return LiveRequest(
        request_id="a", kind="generation", state=state, started_at=0.0, num_prompt_tokens=9, num_computed_tokens=3
    )


def test_embeddings_are_told_too() -> None:
    with serve(mock_engine(ttft_s=0.02)) as server:
        body = {"input": ["abcd"] * 40}
        asking = threading.Thread(target=httpx.post, args=(f"{server.url}/v1/embeddings",), kwargs={"json": body})
        asking.start()
        found: dict[str, Any] = {}

        def is_told() -> bool:
            for request in httpx.get(f"{server.url}/status").json()["models"][0]["requests"]:
                found.update(request)
            return bool(found)

        wait_until(is_told)
        asking.join()
    assert (found["kind"], found["state"]) == ("embedding", "reading")
    assert found["num_prompt_tokens"] == 40 * 5  # a beginning-of-sequence each


# --- the last minutes


async def test_seconds_after_one_that_is_known() -> None:
    app = create_app(Config(), build_registry(FakeEngine(one_by_one("hello"))))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as client:
        app.parts.activity.beat(1000.0)
        await client.post("/v1/completions", json={"prompt": "hi"})
        app.parts.activity.beat(1001.0)
        app.parts.activity.beat(1003.0)
        series = (await client.get("/status")).json()["models"][0]["series"]
        newer = (await client.get("/status?since=1001")).json()
    assert series["at"] == [1001, 1003]
    assert series["output"] == [5.0, 0.0]
    assert series["ttft"][0] > 0 and series["max_ttft"][0] == series["ttft"][0]
    assert series["ttft"][1] is series["max_itl"][1] is None
    assert newer["models"][0]["series"]["at"] == [1003]
    assert newer["settings"] is None


@pytest.mark.parametrize("since", ["-1", "now"])
async def test_since_is_a_time(since: str) -> None:
    async with client_of(FakeEngine()) as client:
        answer = await client.get(f"/status?since={since}")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "since")


def test_a_server_beats_of_itself() -> None:
    with serve(mock_engine()) as server:
        wait_until(lambda: bool(httpx.get(f"{server.url}/status").json()["models"][0]["series"]["at"]))


# --- errors


async def test_errors_are_told_without_what_was_asked() -> None:
    async with client_of(FakeEngine()) as client:
        for _ in range(3):
            await client.post("/v1/completions", json={"prompt": SECRET, "temperature": SECRET})
        await client.post("/v1/completions", json={"prompt": SECRET, "model": SECRET}, headers={"x-request-id": "last"})
        answer = await client.get("/status")
    errors = answer.json()["errors"]
    assert [(error["status"], error["code"], error["count"]) for error in errors] == [
        (404, "model_not_found", 1),
        (400, "invalid_value", 3),
    ]
    assert errors[0]["request_id"] == "last"
    assert "temperature" in errors[1]["message"]
    assert SECRET not in answer.text


def test_an_error_within_a_stream_is_told() -> None:
    with serve(mock_engine(fault="fail@3")) as server:
        httpx.post(f"{server.url}/v1/completions", json={"prompt": "hi", "stream": True})
        errors = httpx.get(f"{server.url}/status").json()["errors"]
    assert [(error["status"], error["code"]) for error in errors] == [(500, "sequence_failed")]


# --- settings


async def test_settings_and_where_they_came_from() -> None:
    config = Config(port=9, security=SecurityConfig(max_headers=50))
    app = create_app(config, build_registry(FakeEngine()), origins={"port": "file /home/anna/pippin.yaml"})
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as client:
        told = {setting["key"]: setting for setting in (await client.get("/status")).json()["settings"]}
    assert told.keys() == {field.key for field in fields()}
    assert (told["port"]["value"], told["port"]["is_default"]) == (9, False)
    assert told["port"]["origin"] == "file …/pippin.yaml"
    assert told["security.max_headers"]["origin"] == "set"
    assert (told["host"]["origin"], told["host"]["is_default"]) == ("default", True)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("/home/anna/cache", "…/cache"),
        ("~/a/b", "…/b"),
        ("~anna/b", "…/b"),
        ("org/model", "org/model"),
        ("/", "/"),
        ("kept", "kept"),
    ],
)
def test_of_a_path_the_last_part_is_told(value: str, told: str) -> None:
    settings = encode_settings(Config(prefix_cache=PrefixCacheConfig(dir=value)), {})
    assert {setting.key: setting.value for setting in settings}["prefix_cache.dir"] == told
