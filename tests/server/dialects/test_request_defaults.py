"""A model's defaults through every API: they hold where a request says nothing, and what it says holds before them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx

from mlx_backend.api.interface import GenerationRequest, ModelInfo
from server.app import create_app
from server.config import Config
from server.request_defaults import RequestDefaults
from server.service.registry import ModelRegistry, ServedModel
from server.text.tokenizer import ByteTokenizer
from tests.fake_engine import FakeEngine, spell
from tests.serving import wait_until

DEFAULTS = RequestDefaults(
    sampling={"temperature": 0.25, "top_p": 0.5, "top_k": 7, "min_p": 0.125, "repetition_penalty": 1.5, "seed": 11},
    max_tokens=33,
    stop=("###",),
    system="You are Mario.",
    messages=({"role": "user", "content": "Is it Toronto?"}, {"role": "assistant", "content": "yes"}),
)
USER = [{"role": "user", "content": "hi"}]
TOLD = "system: You are Mario.\nuser: Is it Toronto?\nassistant: yes\nuser: hi\nassistant:"


@asynccontextmanager
async def served(defaults: RequestDefaults = DEFAULTS) -> AsyncIterator[tuple[httpx.AsyncClient, FakeEngine]]:
    engine = FakeEngine([spell("ab###cd")], info=ModelInfo(context_limit=4096, vocab_size=260))
    model = ServedModel("m", engine, ByteTokenizer, defaults=defaults)
    model.start()
    wait_until(lambda: model.tokenizer is not None)
    registry = ModelRegistry([model])
    app = create_app(Config(), registry)
    try:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            yield client, engine
    finally:
        await registry.close()


def chat_text(read: Mapping[str, Any]) -> str:
    return str(read["choices"][0]["message"]["content"])


CHATS: dict[str, tuple[str, dict[str, Any], Callable[[Any], str]]] = {
    "chat": ("/v1/chat/completions", {"messages": USER}, chat_text),
    "responses": ("/v1/responses", {"input": "hi"}, lambda read: read["output"][0]["content"][0]["text"]),
    "messages": ("/v1/messages", {"messages": USER, "max_tokens": 33}, lambda read: read["content"][0]["text"]),
    "ollama chat": ("/api/chat", {"messages": USER, "stream": False}, lambda read: read["message"]["content"]),
    "ollama generate": ("/api/generate", {"prompt": "hi", "stream": False}, lambda read: read["response"]),
}
TEXTS: dict[str, tuple[str, dict[str, Any], Callable[[Any], str]]] = {
    "completions": ("/v1/completions", {"prompt": "hi"}, lambda read: read["choices"][0]["text"]),
    "ollama raw": ("/api/generate", {"prompt": "hi", "raw": True, "stream": False}, lambda read: read["response"]),
}


async def ask(
    client: httpx.AsyncClient, engine: FakeEngine, path: str, body: Mapping[str, Any]
) -> tuple[Any, GenerationRequest, str]:
    """(the answer, what the engine was asked, its prompt as text)."""
    answer = await client.post(path, json={"model": "m", **body})
    assert answer.status_code == 200, answer.text
    request = engine.requests[-1]
    return answer.json(), request, bytes(token for token in request.prompt_ids if token < 256).decode()


def defaulted(request: GenerationRequest) -> dict[str, Any]:
    return {name: getattr(request.sampling, name) for name in DEFAULTS.sampling}


async def test_they_hold_where_nothing_is_said() -> None:
    async with served() as (client, engine):
        for api, (path, body, text_of) in {**CHATS, **TEXTS}.items():
            read, request, prompt = await ask(client, engine, path, body)
            assert defaulted(request) == DEFAULTS.sampling, api
            assert request.max_tokens == 33, api
            assert text_of(read) == "ab", api  # the stop string ends it
            assert prompt == (TOLD if api in CHATS else "hi"), api


OPENAI: dict[str, Any] = {
    **{"temperature": 1.5, "top_p": 0.75, "top_k": 3, "min_p": 0.0, "repetition_penalty": 1.0, "seed": 5},
    **{"max_tokens": 44, "stop": "d"},
}
OPTIONS = {**OPENAI, "repeat_penalty": 1.0, "num_predict": 44}
OLLAMA = {"options": {name: OPTIONS[name] for name in OPTIONS if name not in ("repetition_penalty", "max_tokens")}}
ANTHROPIC: dict[str, Any] = {"temperature": 1.0, "top_p": 0.75, "top_k": 3, "max_tokens": 44, "stop_sequences": ["d"]}
SAYS: dict[str, dict[str, Any]] = {"chat": OPENAI, "responses": OPENAI, "completions": OPENAI, "messages": ANTHROPIC}


async def test_what_a_request_says_holds_before_them() -> None:
    async with served() as (client, engine):
        for api, (path, body, text_of) in {**CHATS, **TEXTS}.items():
            read, request, _ = await ask(client, engine, path, {**body, **SAYS.get(api, OLLAMA)})
            wanted = {name: value for name, value in OPENAI.items() if name in DEFAULTS.sampling}
            if api == "messages":  # which has no fields for the others
                own = {name: value for name, value in ANTHROPIC.items() if name in wanted}
                wanted = {**DEFAULTS.sampling, **own}
            assert defaulted(request) == wanted, api
            assert request.max_tokens == 44, api
            assert text_of(read) == "ab###c", api


SYSTEM = [{"role": "system", "content": "Be brief."}, *USER]
DEVELOPER = [{"role": "developer", "content": "Be brief."}, *USER]


async def test_a_request_may_have_a_system_prompt_of_its_own() -> None:
    async with served() as (client, engine):
        for api, says in (
            ("chat", {"messages": SYSTEM}),
            ("chat", {"messages": DEVELOPER}),
            ("responses", {"instructions": "Be brief."}),
            ("messages", {"system": "Be brief."}),
            ("ollama chat", {"messages": SYSTEM}),
            ("ollama generate", {"system": "Be brief."}),
        ):
            path, body, _ = CHATS[api]
            _, _, prompt = await ask(client, engine, path, {**body, **says})
            first, _, rest = prompt.partition(": ")
            assert first in ("system", "developer"), api
            assert rest == TOLD.replace("You are Mario.", "Be brief.").partition(": ")[2], api


async def test_values_that_switch_off_are_said_too() -> None:
    path, body, _ = CHATS["chat"]
    cases: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"top_p": 0}, {"top_k": 1, "top_p": 1.0}),
        ({"top_k": -1}, {"top_k": 0, "top_p": 0.5}),
        ({"temperature": 0}, {"temperature": 0.0, "seed": 11}),
        ({"temperature": None}, {"temperature": 0.25}),
    ]
    async with served() as (client, engine):
        for says, wanted in cases:
            _, request, _ = await ask(client, engine, path, {**body, **says})
            assert {name: defaulted(request)[name] for name in wanted} == wanted


async def test_as_many_tokens_as_there_is_room_for_may_be_asked_for() -> None:
    async with served() as (client, engine):
        for api, says in (("chat", {"max_tokens": -1}), ("ollama chat", {"options": {"num_predict": -1, "seed": -1}})):
            path, body, _ = CHATS[api]
            _, request, prompt = await ask(client, engine, path, {**body, **says})
            assert request.max_tokens == 4096 - len(prompt)
        assert request.sampling.seed is None
        _, _, _ = await ask(client, engine, "/v1/chat/completions", {"messages": USER, "stop": []})


async def test_no_stop_strings_may_be_asked_for() -> None:
    path, body, text_of = CHATS["chat"]
    async with served() as (client, engine):
        read, _, _ = await ask(client, engine, path, {**body, "stop": []})
    assert text_of(read) == "ab###cd"


async def test_a_response_repeats_what_it_was_sampled_with() -> None:
    async with served() as (client, engine):
        read, _, _ = await ask(client, engine, "/v1/responses", {"input": "hi", "top_p": 0.75})
    assert (read["temperature"], read["top_p"], read["instructions"]) == (0.25, 0.75, None)


async def test_tokens_are_counted_with_them() -> None:
    async with served() as (client, engine):
        _, request, _ = await ask(client, engine, "/v1/chat/completions", {"messages": USER})
        number = len(request.prompt_ids)
        for path, body, key in (
            ("/v1/messages/count_tokens", {"messages": USER}, "input_tokens"),
            ("/v1/responses/input_tokens", {"input": "hi"}, "input_tokens"),
            ("/tokenize", {"messages": USER}, "count"),
        ):
            assert (await client.post(path, json={"model": "m", **body})).json()[key] == number


async def test_ollamas_clients_see_them() -> None:
    async with served() as (client, _):
        shown = (await client.post("/api/show", json={"model": "m"})).json()
    assert shown["system"] == "You are Mario."
    lines = [line.split(maxsplit=1) for line in shown["parameters"].splitlines()]
    assert ["temperature", "0.25"] in lines and ["num_predict", "33"] in lines and ["stop", '"###"'] in lines


async def test_without_defaults_nothing_changes() -> None:
    async with served(RequestDefaults()) as (client, engine):
        read, request, prompt = await ask(client, engine, "/v1/chat/completions", {"messages": USER})
        assert (await client.post("/v1/responses", json={"model": "other", "input": "hi"})).status_code == 404
    assert chat_text(read) == "ab###cd"
    assert prompt == "user: hi\nassistant:" and request.sampling.temperature == 1.0
