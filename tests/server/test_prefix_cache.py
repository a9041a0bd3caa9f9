"""What a request says of the prefix cache, and what the engine is told: salts, borders, and none of it."""

from __future__ import annotations

import json
from contextlib import aclosing
from typing import Any

import httpx
import pytest

from mlx_backend.api.interface import ModelInfo, PrefixCacheReport
from server.dialects.openai_chat.decode import decode as decode_chat
from server.dialects.openai_chat.schema import ChatRequest
from server.dialects.openai_completions.decode import decode as decode_completion
from server.dialects.openai_completions.schema import CompletionRequest
from server.service import generation
from server.service.job import ChatPrompt, GenerationJob, TextPrompt
from server.service.names import FieldNames
from tests.fake_engine import FakeEngine, spell
from tests.serving import LiveServer, build_registry, client_of, mock_engine, serve

MESSAGES = (
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "a" * 30},
    {"role": "assistant", "content": "ok"},
    {"role": "user", "content": "b"},
)
SYSTEM = b"system: Be kind.\nuser: "


def info(**changes: Any) -> ModelInfo:
    kept: dict[str, Any] = {"kinds": (("plain", "by the token"),), "needs_snapshots": True, **changes}
    return ModelInfo(context_limit=120, vocab_size=260, prefix_cache=PrefixCacheReport(**kept))


async def asked(prompt: Any, model: ModelInfo, *, truncates: bool = False, **changes: Any) -> Any:
    """The engine's request of a job."""
    engine = FakeEngine([spell("x")], info=model)
    job = GenerationJob(
        request_id="1", model="mock", prompts=(prompt,), names=FieldNames(prompt="p"), max_tokens=20, **changes
    )
    async with aclosing(await generation.open(build_registry(engine), job, truncates=truncates)):
        return engine.requests[0]


def before(request: Any) -> tuple[bytes, list[bytes]]:
    """The prompt before the system border, and before each of the others."""
    ids = bytes(request.prompt_ids)
    return ids[: request.system_border], [ids[:border] for border in request.cache_breakpoints]


async def test_borders_of_a_chat() -> None:
    system, borders = before(await asked(ChatPrompt(MESSAGES), info()))
    assert system == SYSTEM
    assert borders == [SYSTEM, SYSTEM + b"a" * 30 + b"\nassistant: ok\nuser: b\n"]


async def test_the_last_border_is_before_the_lines_that_the_next_prompt_will_not_have() -> None:
    messages = (MESSAGES[0], MESSAGES[3])
    request = await asked(ChatPrompt(messages, reminders=("now",)), info())
    _, borders = before(request)
    assert borders == [SYSTEM, SYSTEM + b"b\n"]
    assert bytes(request.prompt_ids).startswith(borders[-1] + b"\n<system-reminder>\nnow\n")


async def test_where_everything_can_be_cut_the_system_prompt_alone_is_told() -> None:
    assert before(await asked(ChatPrompt(MESSAGES), info(needs_snapshots=False))) == (SYSTEM, [])


async def test_borders_of_a_chat_whose_oldest_turns_went() -> None:
    long = (*MESSAGES[:1], {**MESSAGES[1], "content": "a" * 90}, *MESSAGES[2:])
    request = await asked(ChatPrompt(long), info(), truncates=True)
    assert bytes(request.prompt_ids) == SYSTEM + b"b\nassistant:"
    assert before(request) == (SYSTEM, [SYSTEM, SYSTEM + b"b\n"])


@pytest.mark.parametrize(
    ("prompt", "model", "changes"),
    [
        (ChatPrompt(MESSAGES), info(reason="it is off"), {}),
        (ChatPrompt(MESSAGES), info(), {"uses_prefix_cache": False}),
        (TextPrompt("hi"), info(), {}),
    ],
)
async def test_no_borders(prompt: Any, model: ModelInfo, changes: dict[str, Any]) -> None:
    request = await asked(prompt, model, **changes)
    assert (request.system_border, request.cache_breakpoints) == (0, ())
    assert request.uses_prefix_cache is changes.get("uses_prefix_cache", True)


async def test_the_salt_is_the_engines() -> None:
    assert (await asked(TextPrompt("hi"), info(), cache_salt="me")).cache_salt == "me"


@pytest.mark.parametrize(
    ("given", "salt", "is_used"),
    [
        ({}, "", True),
        ({"cache_salt": None, "prefix_cache": None}, "", True),
        ({"cache_salt": "me", "prefix_cache": True}, "me", True),
        ({"cache_salt": "ü" * 256, "prefix_cache": False}, "ü" * 256, False),
    ],
)
def test_on_the_wire(given: dict[str, Any], salt: str, is_used: bool) -> None:
    chat, ignored = decode_chat(ChatRequest(messages=[{"role": "user", "content": "a"}], **given), "1")  # type: ignore[list-item]
    completion, ignored_too = decode_completion(CompletionRequest(prompt="a", **given), "1")
    assert ignored == ignored_too == []
    for job in (chat, completion):
        assert (job.cache_salt, job.uses_prefix_cache) == (salt, is_used)


BODIES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "a"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "a"}]},
    "/v1/embeddings": {"input": "a"},
}
BAD: list[tuple[str, Any]] = [
    *(("cache_salt", value) for value in ("", 1, 1.5, True, ["a"], {"a": 1}, "a" * 257, "\ud800")),
    *(("prefix_cache", value) for value in ("false", 0, 1, ["a"], {"a": 1})),
]


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(("name", "value"), BAD, ids=lambda value: repr(value)[:20])
async def test_bad_values(path: str, name: str, value: Any) -> None:
    engine = FakeEngine([spell("x")])
    body = json.dumps({**BODIES[path], name: value})  # httpx would not write half of a surrogate pair
    async with client_of(engine) as client:
        answer = await client.post(path, content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, name)
    assert not engine.requests


# --- over the real engine


def cached(server: LiveServer, question: str = "b", **fields: Any) -> int:
    body = {"messages": [{"role": "system", "content": "s" * 200}, {"role": "user", "content": question}]}
    answer = httpx.post(f"{server.url}/v1/chat/completions", json={**body, "max_tokens": 2, **fields})
    server.wait_until_idle()
    found: int = answer.raise_for_status().json()["usage"]["prompt_tokens_details"]["cached_tokens"]
    return found


def test_salts_keep_tenants_apart() -> None:
    with serve(mock_engine()) as server:
        assert cached(server) == 0
        assert cached(server) > 200
        assert cached(server, cache_salt="me") == 0
        assert cached(server, cache_salt="me") > 200
        assert cached(server, cache_salt="you") == 0
        assert cached(server) > 200


def test_a_request_without_it_takes_and_keeps_nothing() -> None:
    with serve(mock_engine()) as server:
        assert cached(server, prefix_cache=False) == 0
        assert cached(server) == 0
        assert cached(server, prefix_cache=False) == 0
        assert cached(server) > 200


def test_another_question_takes_the_system_prompt() -> None:
    with serve(mock_engine()) as server:
        assert cached(server, "first") == 0
        assert cached(server, "second") == len("system: " + "s" * 200 + "\nuser: ")
