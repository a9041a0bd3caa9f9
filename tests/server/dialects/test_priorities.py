"""The class of a request: what asks for one, what a key allows, and what the answer says of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from mlx_backend.api.interface import Priority
from server.config import Config, SecurityConfig
from server.dialects.priorities import decode_priority, tier_of
from server.security import keys
from server.security.tenant import Tenant
from tests.serving import DEADLINE_S, LiveServer, mock_engine, serve

MESSAGES = [{"role": "user", "content": "hi"}]
CHAT: dict[str, Any] = {"messages": MESSAGES, "max_tokens": 3}


@pytest.mark.parametrize(
    ("priority", "tier", "expected"),
    [
        (None, None, "normal"),
        ("live", None, "live"),
        ("batch", "priority", "batch"),
        (0, "flex", "normal"),
        (-1, None, "live"),
        (-(10**30), None, "live"),
        (999, None, "batch"),
        (None, "flex", "batch"),
        (None, "priority", "live"),
        (None, "auto", "normal"),
        (None, "scale", "normal"),
        (None, "anything", "normal"),
    ],
)
def test_the_class_that_is_asked_for(priority: Any, tier: str | None, expected: Priority) -> None:
    assert decode_priority(priority, tier) == expected


def test_a_tier_is_reported_as_it_is_asked_for() -> None:
    for tier in ("flex", "priority", "default"):
        assert tier_of(decode_priority(None, tier)) == tier


@pytest.mark.parametrize(
    ("most", "asked", "expected"),
    [("live", "live", "live"), ("normal", "live", "normal"), ("batch", "live", "batch"), ("normal", "batch", "batch")],
)
def test_a_key_allows_its_class_and_less_urgent_ones(most: Priority, asked: Priority, expected: Priority) -> None:
    assert Tenant(priority=most).allow(asked) == expected


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LiveServer, dict[str, str]]]:
    """A server with two keys, by name."""
    file: Path = tmp_path_factory.mktemp("keys") / "keys"
    found = {"any": keys.add(file, "any"), "nightly": keys.add(file, "nightly", priority="batch")}
    with serve(mock_engine(), Config(security=SecurityConfig(keys_file=str(file)))) as server:
        yield server, found


def post(
    served: tuple[LiveServer, dict[str, str]], path: str, body: dict[str, Any], key: str = "any"
) -> httpx.Response:
    server, found = served
    headers = {"Authorization": f"Bearer {found[key]}"}
    return httpx.post(f"{server.url}{path}", json=body, headers=headers, timeout=DEADLINE_S)


@pytest.mark.parametrize(
    ("fields", "key", "header", "tier"),
    [
        ({}, "any", None, None),
        ({"priority": "normal"}, "any", "normal", None),
        ({"priority": -3}, "any", "live", None),
        ({"service_tier": "flex"}, "any", "batch", "flex"),
        ({"service_tier": "auto"}, "any", "normal", "default"),
        ({"service_tier": "priority"}, "any", "live", "priority"),
        ({"service_tier": "priority"}, "nightly", "batch", "flex"),
        ({}, "nightly", "batch", None),
    ],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_the_answer_says_the_class(served: Any, path: str, fields: Any, key: str, header: Any, tier: Any) -> None:
    body = {**(CHAT if "chat" in path else {"prompt": "hi", "max_tokens": 3}), **fields}
    answer = post(served, path, body, key)
    assert answer.status_code == 200
    assert answer.headers.get("x-pippin-priority") == header
    assert answer.json().get("service_tier") == tier
    streamed = post(served, path, {**body, "stream": True}, key)
    assert streamed.headers.get("x-pippin-priority") == header
    chunks = [json.loads(line[6:]) for line in streamed.text.splitlines() if line.startswith("data: {")]
    assert {chunk.get("service_tier") for chunk in chunks} == {tier}


def test_a_response_and_an_embedding_say_it_too(served: Any) -> None:
    body = {"input": "hi", "service_tier": "priority"}
    assert post(served, "/v1/responses", body).json()["service_tier"] == "priority"
    assert post(served, "/v1/responses", body, "nightly").json()["service_tier"] == "flex"
    answer = post(served, "/v1/embeddings", {"input": "hi", "priority": "batch"})
    assert (answer.status_code, answer.headers["x-pippin-priority"]) == (200, "batch")


@pytest.mark.parametrize("value", ["urgent", 1.5, True, [], {"class": "live"}, "LIVE", ""])
def test_no_other_class_is_taken(served: Any, value: Any) -> None:
    answer = post(served, "/v1/chat/completions", {**CHAT, "priority": value})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "priority"


def test_a_tier_is_a_string(served: Any) -> None:
    answer = post(served, "/v1/chat/completions", {**CHAT, "service_tier": 1})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "service_tier")


def test_classes_are_counted_and_shown(served: Any) -> None:
    server, found = served
    authorized = {"Authorization": f"Bearer {found['any']}"}
    before = _tokens(server, authorized)
    post(served, "/v1/chat/completions", {**CHAT, "priority": "batch", "ignore_eos": True})
    post(served, "/v1/messages", {"messages": MESSAGES, "max_tokens": 3}, "nightly")
    after = _tokens(server, authorized)
    assert after["batch"] - before["batch"] == 6
    assert after["live"] == before["live"]
    metrics = httpx.get(f"{server.url}/metrics", headers=authorized, timeout=DEADLINE_S).text
    assert f'pippin_class_output_tokens_total{{model="mock",priority="batch"}} {after["batch"]:.1f}' in metrics
    assert 'pippin_class_requests{model="mock",priority="live",state="waiting"} 0.0' in metrics
    assert 'pippin_class_time_to_first_token_seconds_count{model="mock",priority="live"} ' in metrics


def _tokens(server: LiveServer, headers: dict[str, str]) -> dict[str, int]:
    (model,) = httpx.get(f"{server.url}/admin/models", headers=headers, timeout=DEADLINE_S).json()["data"]
    return {each["priority"]: each["num_output_tokens"] for each in model["classes"]}
