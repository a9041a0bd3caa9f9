"""`/v1/rerank` and `/v1/score`: shapes, order and refusals over the mock, and scores that are the model's own."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from mlx_backend.api.interface import Engine, EngineConfig
from mlx_backend.factory import create_engine
from server.service.scoring import sigmoid
from server.text.tokenizer import load_tokenizer
from tests.rerank_models import write_classifier, write_reranker
from tests.serving import DEADLINE_S, LiveServer, client_of, mock_engine, serve

DOCUMENTS = ["Paris is the capital of France.", {"text": "Reranking is fun."}, "A fast server."]
MESSAGES = [{"role": "user", "content": "hi"}]
BODY: dict[str, Any] = {"query": "What is the capital of France?", "documents": DOCUMENTS}


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with serve(mock_engine(context=2000)) as found:
        yield found


def post(server: LiveServer, body: Any, path: str = "/v1/rerank") -> httpx.Response:
    return httpx.post(f"{server.url}{path}", json=body, timeout=DEADLINE_S)


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank"])
def test_the_most_relevant_come_first_each_with_its_text(server: LiveServer, path: str) -> None:
    answer = post(server, BODY, path).json()
    results = answer["results"]
    assert [set(each) for each in results] == [{"index", "document", "relevance_score"}] * 3
    assert sorted(each["index"] for each in results) == [0, 1, 2]
    scores = [each["relevance_score"] for each in results]
    assert scores == sorted(scores, reverse=True) and all(0 < score < 1 for score in scores)
    for each in results:
        document = DOCUMENTS[each["index"]]
        assert each["document"] == (document if isinstance(document, dict) else {"text": document})
    assert answer["id"].startswith("rerank-") and answer["model"] == "mock"
    assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] > 1000


def test_as_many_as_are_wanted_without_their_texts(server: LiveServer) -> None:
    whole = post(server, BODY).json()["results"]
    for top_n, expected in ((1, 1), (2, 2), (0, 3), (None, 3), (50, 3)):
        found = post(server, {**BODY, "top_n": top_n, "return_documents": False}).json()["results"]
        assert found == [{k: each[k] for k in ("index", "relevance_score")} for each in whole[:expected]]


def test_without_activation_the_scores_are_log_odds(server: LiveServer) -> None:
    shaped = post(server, BODY).json()["results"]
    raw = post(server, {**BODY, "use_activation": False}).json()["results"]
    assert [each["index"] for each in raw] == [each["index"] for each in shaped]
    for one, other in zip(raw, shaped, strict=True):
        assert sigmoid(one["relevance_score"]) == pytest.approx(other["relevance_score"])


def test_equal_documents_keep_their_order(server: LiveServer) -> None:
    results = post(server, {"query": "q", "documents": ["same"] * 20}).json()["results"]
    assert [each["index"] for each in results] == list(range(20))


def test_pairs_are_scored_as_documents_are(server: LiveServer) -> None:
    ranked = {each["index"]: each["relevance_score"] for each in post(server, BODY).json()["results"]}
    answer = post(server, {"text_1": BODY["query"], "text_2": DOCUMENTS}, "/v1/score").json()
    assert {each["index"]: each["score"] for each in answer["data"]} == ranked
    assert (answer["object"], answer["data"][0]["object"]) == ("list", "score")
    pairwise = {"queries": [BODY["query"]] * 3, "documents": DOCUMENTS}
    assert post(server, pairwise, "/score").json()["data"] == answer["data"]
    single = post(server, {"text_1": BODY["query"], "text_2": DOCUMENTS[0]}, "/v1/score").json()["data"]
    assert single == answer["data"][:1]


def test_what_is_cut_is_told(server: LiveServer) -> None:
    whole, cut = post(server, BODY), post(server, {**BODY, "max_tokens_per_doc": 10})
    assert "x-pippin-truncated-tokens" not in whole.headers
    assert cut.headers["x-pippin-truncated-tokens"] == str(21 + 7 + 4)
    used = [each.json()["usage"]["total_tokens"] for each in (whole, cut)]
    assert used[0] - used[1] == 32
    assert cut.json()["results"][0]["document"]["text"] in str(DOCUMENTS)


def test_a_document_beyond_the_context_is_refused_or_cut(server: LiveServer) -> None:
    body = {"query": "q", "documents": ["short", "x" * 5000]}
    refused = post(server, body)
    assert refused.status_code == 400
    assert (refused.json()["error"]["code"], refused.json()["error"]["param"]) == (
        "context_length_exceeded",
        "documents.1",
    )
    assert post(server, {**body, "truncate_prompt_tokens": -1}).status_code == 200
    assert int(post(server, {**body, "truncate_prompt_tokens": 600}).headers["x-pippin-truncated-tokens"]) > 4000


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"query": ""}, "query"),
        ({"query": None}, "query"),
        ({"query": ["a"]}, "query"),
        ({"documents": []}, "documents"),
        ({"documents": ["a"] * 2049}, "documents"),
        ({"documents": "a"}, "documents"),
        ({"documents": ["a", 3]}, "documents.1"),
        ({"documents": [{"image": "a"}]}, "documents.0"),
        ({"documents": [{"text": None}]}, "documents.0"),
        ({"top_n": -1}, "top_n"),
        ({"top_n": "2"}, "top_n"),
        ({"max_tokens_per_doc": 0}, "max_tokens_per_doc"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ({"truncate_prompt_tokens": 20}, "truncate_prompt_tokens"),
        ({"rank_fields": ["title"]}, "rank_fields"),
        ({"max_chunks_per_doc": 3}, "max_chunks_per_doc"),
        ({"priority": "urgent"}, "priority"),
    ],
)
def test_what_cannot_be_is_refused_by_name(server: LiveServer, changes: Any, param: str) -> None:
    answer = post(server, {**BODY, **changes})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_lists_of_different_lengths_are_no_pairs(server: LiveServer) -> None:
    answer = post(server, {"text_1": ["a", "b"], "text_2": ["a", "b", "c"]}, "/v1/score")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "text_2")


def test_lone_surrogates_are_refused(server: LiveServer) -> None:
    sent = json.dumps({"query": "q", "documents": ["\ud800"]}).encode()
    answer = httpx.post(f"{server.url}/v1/rerank", content=sent, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "documents.0")


def test_a_model_says_how_it_scores(server: LiveServer) -> None:
    (model,) = httpx.get(f"{server.url}/v1/models").json()["data"]
    assert model["pippin"]["scoring"] == {"kind": "tokens", "basis": "it is a mock"}
    assert model["pippin"]["no_scoring_reason"] is None


# ---- a model's own logits


async def asked(folder: Path) -> AsyncIterator[httpx.AsyncClient]:
    engine: Engine = create_engine(EngineConfig(model_path=str(folder)))
    async with client_of(engine, tokenizer=lambda: load_tokenizer(folder)) as client:
        while (await client.get("/ready")).status_code != 200:
            assert engine.failure is None
        yield client


@pytest.mark.mlx
@pytest.mark.parametrize("kind", ["tokens", "head"])
async def test_scores_are_those_of_the_models_own_logits(tmp_path: Path, kind: str) -> None:
    import mlx.core as mx
    from mlx_lm.utils import load_model

    folder = (write_reranker if kind == "tokens" else write_classifier)(tmp_path / "tiny-reranker")
    texts = ["The quick brown fox", "", "你好世界。" * 40, "jumps over the lazy dog. " * 12, "The quick brown fox"]
    async for client in asked(folder):
        answer = await client.post("/v1/score", json={"text_1": "the fox", "text_2": texts, "use_activation": False})
        found = [each["score"] for each in answer.json()["data"]]
        chat = await client.post("/v1/chat/completions", json={"messages": MESSAGES, "max_tokens": 2})
        assert chat.status_code == (200 if kind == "tokens" else 400)
        if kind == "tokens":  # what the second job has in common with the first is taken from the prefix cache
            again = await client.post("/v1/score", json={"text_1": "the fox", "text_2": texts, "use_activation": False})
            assert [each["score"] for each in again.json()["data"]] == pytest.approx(found, abs=1e-4)
    tokenizer = load_tokenizer(folder)
    model, _ = load_model(folder, strict=kind == "tokens", model_config={"tie_word_embeddings": True})
    expected = []
    for text in texts:
        parts = (
            "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
            'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n',
            "<Instruct>: Given a web search query, retrieve relevant passages that answer the query\n"
            f"<Query>: the fox\n<Document>: {text}",
            "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
        )
        ids = mx.array([token for part in parts for token in tokenizer.encode(part, add_special_tokens=False)])
        if kind == "tokens":
            logits = model(ids[None])[0, -1]
            yes, no = (tokenizer.encode(word, add_special_tokens=False)[0] for word in ("yes", "no"))
            expected.append((logits[yes] - logits[no]).item())
        else:
            score = mx.load(str(folder / "model.safetensors"))["score.weight"]
            expected.append((score @ model.model(ids[None])[0, -1]).item())
    assert found == pytest.approx(expected, abs=1e-4)
    assert len({round(each, 3) for each in expected}) == 4, "the scores say nothing"


@pytest.mark.mlx
async def test_a_model_that_chats_is_not_asked_to_rerank(tmp_path: Path) -> None:
    folder = write_reranker(tmp_path / "chat")
    async for client in asked(folder):
        answer = await client.post("/v1/rerank", json=BODY)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["param"]) == (400, "unsupported_model", "model")
        assert "does not say that it scores" in error["message"]


def test_a_sigmoid_takes_numbers_of_any_size() -> None:
    assert (sigmoid(1e6), sigmoid(-1e6), sigmoid(0)) == (1, 0, 0.5)
    assert sigmoid(-3) == pytest.approx(1 / (1 + math.e**3))
