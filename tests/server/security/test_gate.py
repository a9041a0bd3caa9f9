"""The gate around the real application: keys, hosts, origins, rates, tenants, and that requests reach no file."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from starlette.types import Receive, Scope, Send

from mlx_backend.api.errors import QueueFull
from mlx_backend.api.interface import EngineStats, ModelInfo
from server.config import Config, SecurityConfig
from server.dialects.openai_errors import encode_error
from server.error_bodies import ErrorBodies
from server.security import keys
from server.security.gate import PROBES, Gate
from server.security.tenant import Tenant
from tests.engine_client import until
from tests.fake_engine import FakeEngine, spell
from tests.serving import client_of, mock_engine

BIG = ModelInfo(context_limit=100_000, vocab_size=260)
CHAT = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
PATHS = ("/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/embeddings", "/tokenize", "/detokenize")
ADAPTERS = ("/v1/load_lora_adapter", "/v1/unload_lora_adapter")
CLOSED = ("/v1/models", "/metrics", "/status", "/admin/models", "/docs", "/openapi.json", "/nothing", *PATHS)


@asynccontextmanager
async def guarded(engine: FakeEngine | None = None, **security: object) -> AsyncIterator[httpx.AsyncClient]:
    config = Config(security=SecurityConfig(**security))  # type: ignore[arg-type]
    async with client_of(engine or FakeEngine([spell("ok")]), config) as client:
        yield client


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    return tmp_path / "keys"


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def error_of(answer: httpx.Response) -> dict[str, Any]:
    assert answer.headers["x-request-id"]
    body = answer.json()
    assert set(body) == {"error"} and set(body["error"]) == {"message", "type", "param", "code"}
    found: dict[str, Any] = body["error"]
    return found


# --- keys


async def test_without_a_key_nothing_is_told_but_the_probes(keys_file: Path) -> None:
    keys.add(keys_file, "alice")
    async with guarded(keys_file=str(keys_file)) as client:
        for path in CLOSED:
            for method in ("GET", "POST", "DELETE", "OPTIONS"):
                answer = await client.request(method, path)
                assert answer.status_code == 401, path
                assert answer.headers["www-authenticate"].startswith("Bearer")
                error = error_of(answer)
                assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_api_key")
        for path in (*PROBES, "/"):
            assert (await client.get(path)).status_code == 200
        assert (await client.get("/dashboard/../v1/models")).status_code == 401
        assert (await client.get("/dashboard/..%2fv1%2fmodels")).status_code == 404


@pytest.mark.parametrize(
    "header",
    [
        ("Authorization", "Bearer wrong"),
        ("Authorization", "Bearer"),
        ("Authorization", "Bearer "),
        ("Authorization", "Basic KEY"),
        ("Authorization", "KEY"),
        ("x-api-key", "wrong"),
        ("x-api-key", ""),
        ("Cookie", "key=KEY"),
    ],
)
async def test_a_key_that_is_wrong_or_elsewhere_is_none(keys_file: Path, header: tuple[str, str]) -> None:
    key = keys.add(keys_file, "alice")
    async with guarded(keys_file=str(keys_file)) as client:
        answer = await client.get(f"/v1/models?api_key={key}", headers={header[0]: header[1].replace("KEY", key)})
    assert answer.status_code == 401
    assert key not in answer.text and "wrong" not in answer.text


async def test_a_key_opens_in_either_header(keys_file: Path) -> None:
    key = keys.add(keys_file, "alice")
    async with guarded(keys_file=str(keys_file)) as client:
        for headers in (bearer(key), {"authorization": f"bearer {key}"}, {"x-api-key": key}):
            assert (await client.get("/v1/models", headers=headers)).status_code == 200


async def test_models_come_and_go_for_admins(keys_file: Path) -> None:
    user, admin = keys.add(keys_file, "alice"), keys.add(keys_file, "root", is_admin=True)
    async with guarded(keys_file=str(keys_file)) as client:
        for path in ("/admin/models/mock/unload", "/admin/models/mock/load", "/admin/nothing", *ADAPTERS):
            refused = await client.post(path, headers=bearer(user))
            assert (refused.status_code, error_of(refused)["code"]) == (403, "admin_key_required")
        listed = await client.get("/admin/models", headers=bearer(user))
        assert [model["state"] for model in listed.json()["data"]] == ["loaded"]
        assert (await client.post("/admin/models/mock/load", headers=bearer(admin))).status_code == 200
    async with guarded() as client:
        assert (await client.post("/admin/models/mock/load")).status_code == 200


async def test_metrics_can_be_opened(keys_file: Path) -> None:
    keys.add(keys_file, "alice")
    async with guarded(keys_file=str(keys_file), open_metrics=True) as client:
        assert (await client.get("/metrics")).status_code == 200
        assert (await client.get("/v1/models")).status_code == 401


async def test_the_log_has_the_keys_name_and_never_the_key(keys_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    key = keys.add(keys_file, "alice")
    with caplog.at_level(logging.DEBUG):
        async with guarded(keys_file=str(keys_file)) as client:
            assert (await client.post("/v1/chat/completions", json=CHAT, headers=bearer(key))).status_code == 200
            assert (await client.post("/v1/completions", json=CHAT, headers=bearer("guess"))).status_code == 401
    assert " key=alice " in caplog.text
    assert key not in caplog.text and "guess" not in caplog.text


# --- hosts and origins


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8080", "localhost.evil.example", "10.0.0.1", ""])
async def test_a_name_that_is_not_ours_is_refused_everywhere(host: str) -> None:
    async with guarded() as client:
        for path in (*CLOSED, *PROBES):
            answer = await client.get(path, headers={"Host": host})
            assert (answer.status_code, error_of(answer)["code"]) == (403, "host_not_allowed")


async def test_two_hosts_are_none() -> None:
    async with guarded() as client:
        headers = [("Host", "localhost"), ("Host", "evil.example")]
        assert (await client.get("/health", headers=headers)).status_code == 400


async def test_cors_is_closed() -> None:
    async with guarded() as client:
        for path in PATHS:
            asked = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
            for method in ("OPTIONS", "POST", "GET"):
                answer = await client.request(method, path, headers=asked, json=CHAT)
                assert (answer.status_code, error_of(answer)["code"]) == (403, "origin_not_allowed")
                assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", None])
@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost.evil.example", None])
async def test_a_simple_post_of_a_foreign_page_does_nothing(kind: str | None, origin: str | None) -> None:
    """What a page may send without asking first. With no Origin, the type alone is in its way."""
    engine = FakeEngine([spell("ok")])
    headers = {name: value for name, value in (("Content-Type", kind), ("Origin", origin)) if value is not None}
    async with guarded(engine) as client:
        answer = await client.post("/v1/chat/completions", content=json.dumps(CHAT), headers=headers)
    assert answer.status_code == (400 if origin is None else 403)
    assert not engine.requests


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", None])
async def test_a_body_without_a_label_is_taken_below_api_where_no_browser_sends_it(kind: str | None) -> None:
    label = {} if kind is None else {"Content-Type": kind}
    engine = FakeEngine([spell("ok")])
    async with guarded(engine) as client:
        for path, status in (("/api/chat", 200), ("/api/generate", 200), ("/apis/chat", 400), ("/v1/completions", 400)):
            answer = await client.post(path, content=json.dumps(CHAT | {"prompt": "hi"}), headers=label)
            assert answer.status_code == status, path
    assert len(engine.requests) == 2


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", None])
@pytest.mark.parametrize(
    ("sender", "status"),
    [
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://localhost:3000"}, 400),
        ({"Sec-Fetch-Site": "cross-site"}, 400),
        ({"Sec-Fetch-Mode": "no-cors"}, 400),
    ],
)
async def test_a_browser_labels_its_bodies_below_api(
    path: str, kind: str | None, sender: dict[str, str], status: int
) -> None:
    """What a page of any site may have sent without asking first is refused, whatever it says of itself."""
    engine = FakeEngine([spell("ok")])
    async with guarded(engine) as client:
        label = {} if kind is None else {"Content-Type": kind}
        answer = await client.post(path, content=json.dumps(CHAT | {"prompt": "hi"}), headers=label | sender)
    assert answer.status_code == status
    assert not engine.requests


@pytest.mark.parametrize("kind", ["text/plain", "multipart/form-data", "text/html"])
async def test_what_a_form_can_send_as_text_is_no_json(kind: str) -> None:
    async with guarded() as client:
        answer = await client.post("/api/chat", content=json.dumps(CHAT), headers={"Content-Type": kind})
    assert answer.status_code == 400


async def test_an_origin_that_is_named_may_ask_and_read() -> None:
    async with guarded(cors_origins="https://app.example") as client:
        origin = {"Origin": "https://app.example"}
        asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization, x-mine"}
        preflight = await client.options("/v1/chat/completions", headers=origin | asked)
        assert preflight.status_code == 204
        assert preflight.headers["access-control-allow-origin"] == "https://app.example"
        assert preflight.headers["access-control-allow-headers"] == "authorization, x-mine"
        assert preflight.headers["vary"] == "Origin"
        answer = await client.post("/v1/chat/completions", headers=origin, json=CHAT)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == "https://app.example"
        assert "access-control-allow-credentials" not in answer.headers
        wrong = await client.post("/v1/chat/completions", headers=origin, json={})
        assert (wrong.status_code, wrong.headers["access-control-allow-origin"]) == (400, "https://app.example")
        assert (await client.get("/health", headers={"Origin": "https://app.example:444"})).status_code == 403


async def test_a_preflight_needs_no_key_and_opens_nothing(keys_file: Path) -> None:
    keys.add(keys_file, "alice")
    async with guarded(keys_file=str(keys_file), cors_origins="https://app.example") as client:
        origin = {"Origin": "https://app.example"}
        asked = {"Access-Control-Request-Method": "POST"}
        assert (await client.options("/v1/models", headers=origin | asked)).status_code == 204
        answer = await client.get("/v1/models", headers=origin)
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (401, "https://app.example")


LOCAL = [
    "http://localhost:3000",
    "https://localhost:8443",
    "http://127.0.0.1:5173",
    "http://[::1]:80",
    "http://tauri.localhost",
    "app://obsidian.md",
    "tauri://localhost",
    "vscode-webview://0abc",
    "capacitor://localhost",
    "chrome-extension://abcdef",
    "moz-extension://1-2",
    "safari-web-extension://A",
]
FOREIGN = [
    "null",
    "file://",
    "http://localhost.evil.example",
    "http://evil.localhost",
    "http://evil.example:80",
    "https://127.0.0.1.evil.example",
    "http://10.0.0.7",
    "http://0.0.0.0",
    "localhost",
    "app:",
    "app://",
    "https://app",
    "data://x",
    "http://",
    "http://localhost:80:80",
    "http://[::1]x",
    "http://evil@localhost",
    "http://localhost/evil.example",
]


@pytest.mark.parametrize("origin", LOCAL)
async def test_a_page_of_this_machine_may_use_the_api_and_no_more(origin: str) -> None:
    async with guarded() as client:
        sent = {"Origin": origin}
        asked = {**sent, "Access-Control-Request-Method": "POST"}
        assert (await client.options("/v1/chat/completions", headers=asked)).status_code == 204
        answer = await client.post("/v1/chat/completions", headers=sent, json=CHAT)
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, origin)
        for path in ("/admin/models", "/status", "/metrics", "/dashboard/app.js", *ADAPTERS):
            assert (await client.get(path, headers=sent)).status_code == 403, path


@pytest.mark.parametrize("origin", FOREIGN)
async def test_what_looks_like_a_page_of_this_machine_may_not(origin: str) -> None:
    engine = FakeEngine([spell("ok")])
    async with guarded(engine) as client:
        answer = await client.post("/v1/chat/completions", headers={"Origin": origin}, json=CHAT)
    assert (answer.status_code, error_of(answer)["code"]) == (403, "origin_not_allowed")
    assert "security.cors_origins" in error_of(answer)["message"]
    assert not engine.requests


async def test_local_pages_can_be_closed() -> None:
    async with guarded(local_origins=False) as client:
        for origin in LOCAL:
            answer = await client.post("/v1/chat/completions", headers={"Origin": origin}, json=CHAT)
            assert answer.status_code == 403, origin


async def test_its_own_page_may() -> None:
    async with guarded() as client:
        answer = await client.post("/v1/chat/completions", headers={"Origin": "http://localhost"}, json=CHAT)
        assert answer.status_code == 200


# --- bounds


async def test_headers_are_bounded() -> None:
    async with guarded(max_headers=20, max_header_bytes=2000) as client:
        assert (await client.get("/health")).status_code == 200
        for headers in ([(f"x-{i}", "1") for i in range(21)], [("x-long", "a" * 2000)]):
            answer = await client.get("/health", headers=headers)
            assert (answer.status_code, error_of(answer)["code"]) == (431, "headers_too_large")
        assert (await client.get("/health?" + "a" * 2000)).status_code == 431


async def test_json_is_not_read_deeper_than_it_may_be() -> None:
    engine = FakeEngine([spell("ok")])
    async with guarded(engine, max_json_depth=16) as client:
        for path in PATHS:
            body = '{"x": ' + "[" * 50_000 + "]" * 50_000 + "}"
            answer = await client.post(path, content=body, headers={"Content-Type": "application/json"})
            assert (answer.status_code, error_of(answer)["code"]) == (400, "too_deep")
        assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 200


# --- rates


async def test_a_key_has_its_requests_a_minute(keys_file: Path) -> None:
    alice, bob = keys.add(keys_file, "alice", requests_per_minute=2), keys.add(keys_file, "bob")
    async with guarded(FakeEngine([spell("ok")]), keys_file=str(keys_file)) as client:
        for left in (1, 0):
            answer = await client.post("/v1/chat/completions", json=CHAT, headers=bearer(alice))
            assert answer.status_code == 200
            assert answer.headers["x-ratelimit-limit-requests"] == "2"
            assert answer.headers["x-ratelimit-remaining-requests"] == str(left)
        answer = await client.post("/v1/chat/completions", json=CHAT, headers=bearer(alice))
        assert answer.status_code == 429
        assert 1 <= int(answer.headers["retry-after"]) <= 30
        assert answer.headers["x-ratelimit-limit-requests"] == "2"
        assert answer.headers["x-ratelimit-remaining-requests"] == "0"
        error = error_of(answer)
        assert (error["type"], error["code"]) == ("requests", "rate_limit_exceeded")
        assert (await client.get("/v1/models", headers=bearer(alice))).status_code == 200
        answer = await client.post("/v1/chat/completions", json=CHAT, headers=bearer(bob))
        assert answer.status_code == 200
        assert "x-ratelimit-limit-requests" not in answer.headers


@pytest.mark.parametrize("stream", [True, False])
async def test_a_key_has_its_tokens_a_minute(keys_file: Path, stream: bool) -> None:
    alice = keys.add(keys_file, "alice", tokens_per_minute=1)
    async with guarded(FakeEngine([spell("ok")]), keys_file=str(keys_file)) as client:
        body = {"prompt": "x" * 50, "max_tokens": 2, "stream": stream}
        assert (await client.post("/v1/completions", json=body, headers=bearer(alice))).status_code == 200
        answer = await client.post("/v1/completions", json=body, headers=bearer(alice))
        assert (answer.status_code, error_of(answer)["type"]) == (429, "tokens")
        assert int(answer.headers["retry-after"]) > 60 * 50


async def test_new_limits_hold_from_the_next_request_on() -> None:
    async with guarded() as client:
        gate: Any = client._transport.app.gate  # type: ignore[attr-defined]
        assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 200
        gate.take_limits(SecurityConfig(max_bodies_bytes=10))
        gate._bodies.num_bytes = 5  # of a request in progress
        answer = await client.post("/v1/chat/completions", json=CHAT)
        gate._bodies.num_bytes = 0
        assert (answer.status_code, error_of(answer)["code"]) == (503, "too_many_bodies")
        gate.take_limits(SecurityConfig(max_headers=1))
        assert (await client.get("/v1/models")).status_code == 431
        gate.take_limits(SecurityConfig(max_json_depth=1))
        assert error_of(await client.post("/v1/chat/completions", json=CHAT))["code"] == "too_deep"
        gate.take_limits(SecurityConfig(requests_per_minute=1))
        assert [(await client.post("/v1/chat/completions", json=CHAT)).status_code for _ in range(2)] == [200, 429]


@pytest.mark.parametrize("path", ["/v1/embeddings", "/embeddings"])
async def test_a_keys_limits_hold_for_embeddings(keys_file: Path, path: str) -> None:
    alice = keys.add(keys_file, "alice", tokens_per_minute=60)
    engine = mock_engine()
    config = Config(security=SecurityConfig(keys_file=str(keys_file)))
    async with client_of(engine, config) as client:
        await until(lambda: engine.model_info is not None)
        body = {"model": "mock", "input": "x" * 50}
        assert (await client.post(path, json=body, headers=bearer(alice))).status_code == 200
        answer = await client.post(path, json=body, headers=bearer(alice))
        assert (answer.status_code, error_of(answer)["type"]) == (429, "tokens")


async def test_without_keys_the_limits_are_everybodys() -> None:
    async with guarded(requests_per_minute=1) as client:
        assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 200
        assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 429
        assert (await client.get("/health")).status_code == 200


async def test_a_full_queue_says_when_to_come_again() -> None:
    engine = FakeEngine([spell("ok")])
    engine.refusal = QueueFull(900, 17)
    async with guarded(engine) as client:
        answer = await client.post("/v1/chat/completions", json=CHAT)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "17")
        assert error_of(answer)["code"] == "queue_full"


# --- tenants


async def test_keys_share_no_prefixes_unless_they_are_to(keys_file: Path) -> None:
    names = {name: keys.add(keys_file, name) for name in ("alice", "bob")}
    for shares in (False, True):
        engine = FakeEngine([spell("ok")])
        async with guarded(engine, keys_file=str(keys_file), share_prefix_cache=shares) as client:
            for key in names.values():
                for more in ({}, {"cache_salt": "s"}):
                    answer = await client.post("/v1/chat/completions", json=CHAT | more, headers=bearer(key))
                    assert answer.status_code == 200
        assert [request.tenant for request in engine.requests] == ["alice", "alice", "bob", "bob"]
        assert len({request.cache_salt for request in engine.requests}) == (2 if shares else 4)


def test_no_salt_of_one_key_is_anothers() -> None:
    assert Tenant("a").salt("b\0c") != Tenant("a\0b").salt("c") or "\0" in "a\0b"  # names have no such character
    assert Tenant("ab").salt("c") != Tenant("a").salt("bc")
    assert Tenant().salt("x") == "x"


# --- files, downloads, code


async def test_a_request_picks_a_served_model_and_names_no_path(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    async with guarded() as client:
        for name in (
            str(tmp_path),
            "../mock",
            "/etc/passwd",
            "mlx-community/some-model",
            "https://a.example/m",
            "mock/",
        ):
            for path, asked in (
                ("completions", {"prompt": "x"}),
                ("chat/completions", CHAT),
                ("embeddings", {"input": "x"}),
            ):
                answer = await client.post(f"/v1/{path}", json={"model": name} | asked)
                assert (answer.status_code, error_of(answer)["code"]) == (404, "model_not_found")


@pytest.mark.parametrize(
    "field",
    [
        {"lora": "/etc/passwd"},
        {"adapter": "https://a.example/x"},
        {"adapters": ["x"]},
        {"chat_template": "{{ 1 }}"},
        {"logits_processors": ["os.system"]},
        {"chat_template_kwargs": {"chat_template": "{{ 1 }}"}},
        {
            "messages": [
                {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}
            ]
        },
        {"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_id": "/etc/passwd"}}]}]},
        {"guided_json": {"$ref": "file:///etc/passwd"}},
        {"guided_json": {"$ref": "http://127.0.0.1:1/x.json"}},
    ],
    ids=lambda field: next(iter(field)),
)
async def test_what_would_load_or_run_something_is_refused(field: dict[str, Any]) -> None:
    engine = FakeEngine([spell("ok")])
    async with guarded(engine) as client:
        answer = await client.post("/v1/chat/completions", json=CHAT | field)
    assert answer.status_code == 400, answer.text
    assert "root:" not in answer.text
    assert not engine.requests


def test_code_of_a_checkpoint_is_never_run() -> None:
    """`trust_remote_code` is said where a library would ask, as False, and nowhere else."""
    root = Path(__file__).parents[3]
    told = [
        line.strip()
        for package in ("server", "mlx_backend")
        for path in (root / package).rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.search(r"trust_remote_code\W+(=|:)?\s*(True|False)|exec\(|eval\(", line)
        and not re.search(r"mx\.eval\(|\.eval\(|async_eval\(|literal_eval\(|def eval", line)
    ]
    assert told == ['extra = {"trust_remote_code": False}']


# --- clients


async def test_the_sdk_knows_what_it_is_told(keys_file: Path) -> None:
    key = keys.add(keys_file, "alice", requests_per_minute=1)
    async with guarded(keys_file=str(keys_file)) as client:
        http: Any = client  # whichever library's the SDK expects it to be
        sdk = openai.AsyncOpenAI(base_url="http://localhost/v1", api_key=key, max_retries=0, http_client=http)
        assert [model.id async for model in sdk.models.list()] == ["mock"]
        await sdk.completions.create(model="mock", prompt="hi", max_tokens=2)
        with pytest.raises(openai.RateLimitError):
            await sdk.completions.create(model="mock", prompt="hi", max_tokens=2)
        with pytest.raises(openai.AuthenticationError):
            await sdk.with_options(api_key="guess").models.list()


async def test_a_socket_does_not_come_in_by_another_protocol(keys_file: Path) -> None:
    keys.add(keys_file, "alice")
    came: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        came.append(scope["type"])

    async def nothing(*_: object) -> Any:
        raise AssertionError("nothing is said")

    gate = Gate(app, Config(security=SecurityConfig(keys_file=str(keys_file))), ErrorBodies(encode_error))
    await gate({"type": "websocket", "path": "/"}, nothing, nothing)
    assert came == []


# --- revoked while in use


@asynccontextmanager
async def slow(keys_file: Path, **security: object) -> AsyncIterator[httpx.AsyncClient]:
    """Over the mock at 20 tokens a second, with the watch that the server keeps over its keys."""
    config = Config(security=SecurityConfig(keys_file=str(keys_file), **security))  # type: ignore[arg-type]
    engine = mock_engine(itl_s=0.05)
    async with client_of(engine, config) as client:
        await until(lambda: engine.model_info is not None)
        gate: Gate = client._transport.app.gate  # type: ignore[attr-defined]
        watching = asyncio.create_task(gate.watch_keys())
        try:
            yield client
        finally:
            watching.cancel()


def stats_of(client: httpx.AsyncClient) -> EngineStats:
    (model,) = client._transport.app.parts.registry.list()  # type: ignore[attr-defined]
    stats: EngineStats = model.engine.stats()
    return stats


LONG = {"prompt": "x", "max_tokens": 2000, "ignore_eos": True}


async def test_what_runs_for_a_revoked_key_ends_and_nothing_else(keys_file: Path) -> None:
    alice, bob = keys.add(keys_file, "alice"), keys.add(keys_file, "bob")
    async with slow(keys_file) as client:
        whole = asyncio.create_task(client.post("/v1/completions", json=LONG, headers=bearer(alice)))
        other = asyncio.create_task(
            client.post("/v1/completions", json={**LONG, "max_tokens": 60}, headers=bearer(bob))
        )
        streamed = asyncio.create_task(
            client.post("/v1/completions", json={**LONG, "stream": True}, headers=bearer(alice))
        )
        await until(lambda: stats_of(client).num_running == 3)
        keys.revoke(keys_file, "alice")
        answer = await whole
        assert (answer.status_code, error_of(answer)["message"]) == (401, "The API key has been revoked.")
        events = [line for line in (await streamed).text.splitlines() if line.startswith("data: ")]
        assert "revoked" in json.loads(events[-1].removeprefix("data: "))["error"]["message"]
        assert len(events) > 1
        assert (await other).json()["usage"]["completion_tokens"] == 60
        await until(lambda: stats_of(client).num_running == 0)


async def test_a_disk_that_hangs_holds_nobody_up_for_long(keys_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alice = keys.add(keys_file, "alice")
    stuck = threading.Event()
    monkeypatch.setattr("server.security.gate._KEYS_WAIT_S", 0.01)
    monkeypatch.setattr(keys.KeyRing, "read", lambda _: stuck.wait(60) and keys.Reading())
    monkeypatch.setattr(keys.KeyRing, "is_due", property(lambda _: True))
    try:
        async with guarded(keys_file=str(keys_file)) as client:
            for _ in range(3):
                assert (await client.get("/v1/models", headers=bearer(alice))).status_code == 200
    finally:
        stuck.set()


# --- tokens in parallel


async def test_requests_in_parallel_take_no_more_tokens_than_their_key_has(keys_file: Path) -> None:
    alice = keys.add(keys_file, "alice", tokens_per_minute=600)
    async with slow(keys_file) as client:
        body = {"prompt": "x", "max_tokens": 250, "ignore_eos": True}
        asked = [
            asyncio.create_task(client.post("/v1/completions", json=body, headers=bearer(alice))) for _ in range(30)
        ]
        await until(lambda: sum(task.done() for task in asked) == 28)
        running = [task for task in asked if not task.done()]
        refused = [task.result() for task in asked if task.done()]
        assert {answer.status_code for answer in refused} == {429}
        assert all(int(answer.headers["Retry-After"]) > 5 for answer in refused)
        assert all(answer.headers["x-ratelimit-limit-tokens"] == "600" for answer in refused)
        for task in running:
            task.cancel()
        await asyncio.wait(running)
        await until(lambda: stats_of(client).num_running == 0)
        answer = await client.post("/v1/completions", json={**body, "max_tokens": 1}, headers=bearer(alice))
        assert int(answer.headers["x-ratelimit-remaining-tokens"]) > 400, "what was not written is given back"


async def test_an_answer_of_unknown_length_is_let_in_and_counted_as_it_comes(keys_file: Path) -> None:
    alice = keys.add(keys_file, "alice", tokens_per_minute=3000)
    async with guarded(FakeEngine([spell("ok")], info=BIG), keys_file=str(keys_file)) as client:
        chat = {"messages": [{"role": "user", "content": "hi"}]}
        for _ in range(5):
            assert (await client.post("/v1/chat/completions", json=chat, headers=bearer(alice))).status_code == 200
