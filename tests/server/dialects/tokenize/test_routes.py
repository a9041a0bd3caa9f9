"""Text to tokens and back, over HTTP."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from mlx_backend.api.errors import ModelLoadError
from server.service.encoding import LONG_TEXT_CHARS
from tests.fake_engine import FakeEngine
from tests.serving import client_of

BOS, EOS = 257, 256
MESSAGES = [{"role": "user", "content": "é"}]


async def post(path: str, body: dict[str, Any], engine: FakeEngine | None = None) -> httpx.Response:
    async with client_of(engine or FakeEngine()) as client:
        return await client.post(path, json=body)


async def tokens_of(**body: Any) -> list[int]:
    answer = await post("/tokenize", body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["count"] == len(answer.json()["tokens"])
    return list(answer.json()["tokens"])


async def test_a_prompt() -> None:
    answer = await post("/tokenize", {"model": "mock", "prompt": "aé"})
    assert answer.json() == {"count": 4, "max_model_len": 64, "tokens": [BOS, 97, 195, 169], "token_strs": None}


async def test_token_strings() -> None:
    answer = await post("/tokenize", {"prompt": "aé", "return_token_strs": True})
    assert answer.json()["token_strs"] == ["<bos>", "a", "\ufffd", "\ufffd"]


async def test_a_text_that_takes_too_long_is_refused() -> None:
    bodies: list[dict[str, Any]] = [{"prompt": "x" * 1_000_001}]
    for body in (*bodies, {"messages": [{"role": "user", "content": "x" * 1_000_001}]}):
        answer = await post("/tokenize", body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "too_long")
        assert answer.json()["error"]["param"] == next(iter(body))


@pytest.mark.parametrize("text", ["", "a", "x" * (LONG_TEXT_CHARS + 1)])
async def test_special_tokens_are_added_unless_told_otherwise(text: str) -> None:
    assert await tokens_of(prompt=text) == [BOS, *text.encode()]
    assert await tokens_of(prompt=text, add_special_tokens=False) == list(text.encode())


async def test_messages() -> None:
    """As a chat would send them to the model: the template writes its special tokens itself."""
    assert bytes(await tokens_of(messages=MESSAGES)).decode() == "user: é\nassistant:"
    assert bytes(await tokens_of(messages=MESSAGES, add_generation_prompt=False)).decode() == "user: é\n"
    begun: list[dict[str, Any]] = [*MESSAGES, {"role": "assistant", "content": "It "}]
    assert bytes(await tokens_of(messages=begun, continue_final_message=True)).decode() == "user: é\nassistant: It "
    begun[1]["prefix"] = True
    assert bytes(await tokens_of(messages=begun)).decode() == "user: é\nassistant: It "
    assert (await tokens_of(messages=MESSAGES, add_special_tokens=True))[0] == BOS
    parts = [{"role": "developer", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    assert bytes(await tokens_of(messages=parts, chat_template_kwargs={"x": 1}, tools=[])).startswith(b"system: ab\n")


async def test_more_than_the_context_is_counted_all_the_same() -> None:
    assert len(await tokens_of(prompt="x" * 1000, add_special_tokens=False)) == 1000


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "prompt"),
        ({"prompt": "a", "messages": MESSAGES}, "prompt"),
        ({"prompt": 7}, "prompt"),
        ({"prompt": ["a"]}, "prompt"),
        ({"messages": []}, "messages"),
        ({"messages": [{"content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content"),
        ({"messages": MESSAGES, "chat_template_kwargs": {"tokenize": True}}, "messages"),
        ({"prompt": "a", "add_generation_prompt": True}, "add_generation_prompt"),
        ({"prompt": "a", "tools": []}, "tools"),
        ({"messages": MESSAGES, "continue_final_message": True}, "continue_final_message"),
        (
            {"messages": MESSAGES, "continue_final_message": True, "add_generation_prompt": True},
            "continue_final_message",
        ),
        ({"prompt": "a", "return_token_strs": 1}, "return_token_strs"),
    ],
)
async def test_bad_bodies(body: dict[str, Any], param: str) -> None:
    answer = await post("/tokenize", body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        ([], ""),
        ([BOS, 97, 195, 169, EOS], "<bos>aé<eos>"),
        ([195, EOS, 169], "\ufffd<eos>\ufffd"),
        ([32, 97, 32], " a "),
        ([97] * (LONG_TEXT_CHARS + 1), "a" * (LONG_TEXT_CHARS + 1)),
    ],
)
async def test_detokenize(tokens: list[int], text: str) -> None:
    answer = await post("/detokenize", {"model": "mock", "tokens": tokens})
    assert answer.json() == {"prompt": text}


@pytest.mark.parametrize(
    ("tokens", "param"),
    [
        (None, "tokens"),
        ("a", "tokens"),
        ([260], "tokens"),
        ([-1], "tokens.0"),
        ([True], "tokens.0"),
        ([2**31], "tokens.0"),
    ],
)
async def test_bad_tokens(tokens: Any, param: str) -> None:
    answer = await post("/detokenize", {"tokens": tokens})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


async def test_too_many_tokens() -> None:
    answer = await post("/detokenize", {"tokens": [1] * (2**20 + 1)})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "tokens")


@pytest.mark.parametrize(("path", "body"), [("/tokenize", {"prompt": "a"}), ("/detokenize", {"tokens": [97]})])
async def test_models_and_fields_that_nobody_knows(path: str, body: dict[str, Any]) -> None:
    assert (await post(path, {**body, "model": "other"})).status_code == 404
    assert (await post(path, body, FakeEngine(is_loaded=False))).status_code == 503
    dead = FakeEngine()
    dead.failure = ModelLoadError("broken")
    assert (await post(path, body, dead)).json()["error"]["code"] == "engine_dead"
    answer = await post(path, {**body, "foo": 1})
    assert (answer.status_code, answer.headers["x-pippin-ignored-fields"]) == (200, "foo")
