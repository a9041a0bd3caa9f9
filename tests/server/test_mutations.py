"""Valid bodies with fields changed at random: each is answered or refused in OpenAI's form, and nothing breaks."""

from __future__ import annotations

import copy
import random
from typing import Any

import httpx
import pytest

from server.dialects.openai_chat.schema import ChatRequest
from server.dialects.openai_completions.schema import CompletionRequest
from server.dialects.openai_embeddings.schema import EmbeddingRequest
from server.dialects.openai_responses.schema import ResponsesRequest
from server.dialects.tokenize.schema import DetokenizeRequest, TokenizeRequest
from tests.serving import mock_engine, serve

NUM_BODIES = 250
VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 0.5, 1e9, -3.7, 2**40, "", "x", "a" * 300, "é"),
    *([], [1], ["a"], [None], [[1, 2]], {}, {"type": "json_object"}, {"type": "function"}, {"a": {"b": [1]}}),
]
BODIES: list[tuple[str, Any, dict[str, Any]]] = [
    ("/v1/chat/completions", ChatRequest, {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}),
    ("/v1/completions", CompletionRequest, {"prompt": "hi", "max_tokens": 5}),
    ("/v1/responses", ResponsesRequest, {"input": "hi", "max_output_tokens": 5}),
    ("/v1/embeddings", EmbeddingRequest, {"input": "hi"}),
    ("/tokenize", TokenizeRequest, {"prompt": "hi"}),
    ("/detokenize", DetokenizeRequest, {"tokens": [5, 6]}),
]
OF_MESSAGES = ("role", "content", "tool_calls", "name", "reasoning_content", "tool_call_id")


def mutate(source: random.Random) -> tuple[str, dict[str, Any]]:
    path, schema, valid = source.choice(BODIES)
    body = copy.deepcopy(valid)
    if "messages" in body and source.random() < 0.3:
        body["messages"][0][source.choice(OF_MESSAGES)] = source.choice(VALUES)
    for _ in range(source.randint(0, 4)):
        body[source.choice(list(schema.model_fields))] = source.choice(VALUES)
    if source.random() < 0.2:
        body["guided_regex"] = source.choice(["[a-z]{1,5}", "(a|b)*c", "(?=x)", "a{1,100000}", ".*"])
    return path, body


@pytest.mark.parametrize("seed", range(4))
def test_no_body_breaks_anything(seed: int) -> None:
    source = random.Random(seed)
    statuses = set()
    with serve(mock_engine()) as server, httpx.Client(base_url=server.url, timeout=30) as client:
        for _ in range(NUM_BODIES):
            path, body = mutate(source)
            answer = client.post(path, json=body)
            assert answer.status_code < 500, (path, body, answer.text)
            if answer.status_code != 200:
                assert answer.json()["error"].keys() == {"message", "type", "param", "code"}, (path, body)
            statuses.add(answer.status_code)
        assert client.get("/health").json()["status"] == "ok"
    assert {200, 400} <= statuses
