"""`/v1/embeddings` through the application, over the real engine with the mock runner and over scripted ones."""

from __future__ import annotations

import base64
import json
import logging
import math
import struct
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
from openai.types import CreateEmbeddingResponse

from mlx_backend.api.errors import OutOfMemory, QueueFull
from mlx_backend.api.interface import EmbeddingInfo, Engine, ModelInfo, PromptEvent
from server.dialects.openai_embeddings.schema import EmbeddingAnswer
from server.dialects.openai_prompts import MAX_PROMPTS
from tests.fake_engine import FakeEngine
from tests.server.security.wire import connect
from tests.serving import client_of, mock_engine, serve, wait_until

PATH = "/v1/embeddings"
BOS = 257
DIM = 4
INFO = ModelInfo(
    context_limit=64, vocab_size=260, embedding=EmbeddingInfo(dim=DIM, pooling="last", is_normalized=False)
)


def told(*numbers: float, index: int = 0) -> tuple[PromptEvent, ...]:
    return (PromptEvent(index, finish_reason="length", embedding=struct.pack(f"<{len(numbers)}f", *numbers)),)


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    engine = mock_engine(context=64)
    async with client_of(engine) as client:
        wait_until(lambda: engine.model_info is not None)
        yield client
    engine.close()


async def answered(client: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    answer = await client.post(PATH, json=body)
    assert answer.status_code == 200, answer.text
    if body.get("encoding_format") != "base64":  # for which the SDK's type has no room
        CreateEmbeddingResponse.model_validate(answer.json())
    EmbeddingAnswer.model_validate(answer.json())
    return dict(answer.json())


async def refused(client: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    answer = await client.post(PATH, json=body)
    assert answer.status_code == 400, answer.text
    error = dict(answer.json()["error"])
    assert error["type"] == "invalid_request_error"
    assert (await client.post(PATH, json={"input": "ok"})).status_code == 200
    return error


async def ask(engine: Engine, **body: Any) -> httpx.Response:
    async with client_of(engine) as client:
        return await client.post(PATH, json={"input": "a", **body})


# ---- answers


async def test_one_input(client: httpx.AsyncClient) -> None:
    answer = await answered(client, input="abc")
    (item,) = answer.pop("data")
    assert answer == {"object": "list", "model": "mock", "usage": {"prompt_tokens": 4, "total_tokens": 4}}
    assert (item["object"], item["index"]) == ("embedding", 0)
    assert math.hypot(*item["embedding"]) == pytest.approx(1, abs=1e-6)


async def test_the_four_forms_of_one_text(client: httpx.AsyncClient) -> None:
    """Special tokens as the tokenizer adds them to a text; token ids are taken as they are."""
    ids = [BOS, *b"abc"]
    forms: list[Any] = ["abc", ["abc"], ids, [ids]]
    answers = [await answered(client, input=form) for form in forms]
    assert answers == [answers[0]] * 4


async def test_many_inputs_are_in_order(client: httpx.AsyncClient) -> None:
    texts = [f"text {number}" * (1 + number % 3) for number in range(50)]
    alone = [(await answered(client, input=text))["data"][0]["embedding"] for text in texts]
    together = await answered(client, input=texts)
    assert [item["index"] for item in together["data"]] == list(range(50))
    assert [item["embedding"] for item in together["data"]] == alone
    assert len({tuple(vector) for vector in alone}) == 50
    assert together["usage"]["total_tokens"] == sum(1 + len(text) for text in texts)


async def test_as_many_inputs_as_there_may_be(client: httpx.AsyncClient) -> None:
    answer = await answered(client, input=["a"] * MAX_PROMPTS)
    assert len(answer["data"]) == MAX_PROMPTS
    assert (await refused(client, input=["a"] * (MAX_PROMPTS + 1)))["param"] == "input"
    assert (await refused(client, input=[[1]] * (MAX_PROMPTS + 1)))["param"] == "input"


async def test_base64_is_the_same_numbers(client: httpx.AsyncClient) -> None:
    numbers = (await answered(client, input="a", encoding_format="float"))["data"][0]["embedding"]
    text = (await answered(client, input="a", encoding_format="base64"))["data"][0]["embedding"]
    assert list(struct.unpack(f"<{len(numbers)}f", base64.b64decode(text))) == numbers


async def test_fewer_dimensions(client: httpx.AsyncClient) -> None:
    whole = (await answered(client, input="a"))["data"][0]["embedding"]
    for dimensions in (1, 5, len(whole)):
        (item,) = (await answered(client, input="a", dimensions=dimensions))["data"]
        length = math.hypot(*whole[:dimensions])
        assert item["embedding"] == pytest.approx([number / length for number in whole[:dimensions]], abs=1e-6)


async def test_a_vector_of_any_length_is_cut_and_no_more() -> None:
    engine = FakeEngine([told(3, 4, 5, 6)], info=INFO)
    assert (await ask(engine, dimensions=2)).json()["data"][0]["embedding"] == [3, 4]


async def test_nothing_is_cut_of_nothing() -> None:
    info = replace(INFO, embedding=EmbeddingInfo(dim=DIM, pooling="last", is_normalized=True))
    answer = await ask(FakeEngine([told(0, 0, 0, 1)], info=info), dimensions=2)
    assert answer.json()["data"][0]["embedding"] == [0, 0]


async def test_the_context_may_be_full(client: httpx.AsyncClient) -> None:
    assert (await answered(client, input="x" * 63))["usage"]["prompt_tokens"] == 64


async def test_what_changes_nothing_is_accepted(client: httpx.AsyncClient) -> None:
    plain = await answered(client, input="a")
    answer = await client.post(
        PATH, json={"input": "a", "model": None, "user": "me", "dimensions": None, "normalize": None, "foo": 1}
    )
    assert answer.json() == plain
    assert answer.headers["x-pippin-ignored-fields"] == "foo"


async def test_the_line_in_the_log(caplog: pytest.LogCaptureFixture, client: httpx.AsyncClient) -> None:
    caplog.set_level(logging.INFO, "pippin.request")
    await answered(client, input=["ab", "c"])
    assert "model=mock inputs=2 prompt=5 took=" in caplog.text
    assert "embedding=done" in caplog.text


# ---- refusals


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ("", "input"),
        ([], "input"),
        ([[]], "input.0"),
        ([""], "input.0"),
        (["a", "", "b"], "input.1"),
        ([[1], []], "input.1"),
        ([1, 999], "input"),
        ([[1], [-1]], "input.1"),
        ([[1], [2**64]], "input.1"),
        (["a", 1], "input"),
        ([["a"]], "input"),
        ([True], "input"),
        ([1.5], "input"),
        ({"text": "a"}, "input"),
        (5, "input"),
        (None, "input"),
    ],
    ids=str,
)
async def test_inputs_that_cannot_be(client: httpx.AsyncClient, wrong: Any, param: str) -> None:
    error = await refused(client, input=wrong)
    assert error["param"] == param
    assert f"'{param}'" in error["message"] or "does not exist: this model" in error["message"]


async def test_half_of_a_character(client: httpx.AsyncClient) -> None:
    headers = {"content-type": "application/json"}
    answer = await client.post(PATH, content=json.dumps({"input": ["a", "\ud800"]}), headers=headers)
    assert answer.status_code == 400
    assert "not valid Unicode" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"encoding_format": "hex"}, "encoding_format"),
        ({"encoding_format": 5}, "encoding_format"),
        ({"dimensions": 0}, "dimensions"),
        ({"dimensions": -1}, "dimensions"),
        ({"dimensions": "4"}, "dimensions"),
        ({"dimensions": 1.5}, "dimensions"),
        ({"dimensions": 17}, "dimensions"),
        ({"model": 5}, "model"),
        ({"user": 5}, "user"),
        ({"truncate_prompt_tokens": 4}, "truncate_prompt_tokens"),
        ({"add_special_tokens": False}, "add_special_tokens"),
        ({"normalize": False}, "normalize"),
        ({"input_type": "query"}, "input_type"),
    ],
    ids=str,
)
async def test_wrong_values(client: httpx.AsyncClient, fields: dict[str, Any], param: str) -> None:
    error = await refused(client, input="a", **fields)
    assert error["param"] == param
    assert param in error["message"]


async def test_no_input(client: httpx.AsyncClient) -> None:
    error = await refused(client)
    assert (error["param"], error["code"]) == ("input", "missing_required_parameter")


@pytest.mark.parametrize(("wrong", "param"), [("x" * 70, "input"), (["a", "x" * 70], "input.1")])
async def test_over_the_context_limit(client: httpx.AsyncClient, wrong: Any, param: str) -> None:
    error = await refused(client, input=wrong)
    assert (error["code"], error["param"]) == ("context_length_exceeded", param)
    assert "71" in error["message"]
    assert "64" in error["message"]


async def test_nothing_is_computed_where_one_input_is_wrong() -> None:
    engine = FakeEngine([told(1, 2, 3, 4)], info=INFO)
    assert (await ask(engine, input=["a", "x" * 70])).status_code == 400
    assert not engine.requests


async def test_an_unknown_model(client: httpx.AsyncClient) -> None:
    answer = await client.post(PATH, json={"input": "a", "model": "other"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


async def test_a_model_that_makes_none() -> None:
    info = ModelInfo(context_limit=64, vocab_size=260, no_embedding_reason="its pooling is max")
    engine = FakeEngine(info=info)
    answer = await ask(engine)
    assert answer.status_code == 400
    assert answer.json()["error"] == {
        "message": "The model 'mock' does not support embeddings: its pooling is max.",
        "type": "invalid_request_error",
        "param": "model",
        "code": "unsupported_model",
    }
    assert not engine.requests


# ---- failures


async def test_what_the_engine_refuses() -> None:
    engine = FakeEngine(info=INFO)
    engine.refusal = QueueFull(9)
    answer = await ask(engine)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "queue_full")
    assert answer.headers["retry-after"]
    loading = await ask(FakeEngine(is_loaded=False))
    assert (loading.status_code, loading.json()["error"]["code"]) == (503, "model_loading")


async def test_a_computation_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "pippin.request")
    engine = FakeEngine([OutOfMemory("no memory for this")], info=INFO)
    answer = await ask(engine)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "out_of_memory")
    assert engine.streams[0].num_closed == 1
    assert "embedding=failed (OutOfMemory" in caplog.text


@pytest.mark.parametrize("number", [math.nan, math.inf])
async def test_a_vector_that_is_not_of_numbers(number: float) -> None:
    answer = await ask(FakeEngine([told(0, number, 0, 0)], info=INFO), encoding_format="base64")
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")


def test_a_client_that_leaves_takes_its_inputs_with_it() -> None:
    with serve(mock_engine(ttft_s=0.2)) as server:
        body = json.dumps({"input": ["a" * 200] * 100}).encode()
        head = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        with connect(server.port) as connection:
            connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            wait_until(lambda: server.engine.stats().num_prefilling > 0)
        server.wait_until_idle()
        wait_until(lambda: server.engine.stats().num_aborted > 0)
        assert server.engine.stats().num_finished < 100
