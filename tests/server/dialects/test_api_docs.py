"""docs/api.md names every parameter: those of the schemas, those that are refused, those without effect."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from server.dialects.ollama import options as ollama_options
from server.dialects.ollama import schema as ollama
from server.dialects.openai_chat import decode as chat
from server.dialects.openai_chat.schema import ChatRequest
from server.dialects.openai_completions import decode as completions
from server.dialects.openai_completions.schema import CompletionRequest
from server.dialects.openai_embeddings import decode as embeddings
from server.dialects.openai_embeddings.schema import EmbeddingRequest
from server.dialects.openai_refusals import NO_EFFECT
from server.dialects.openai_responses import decode as responses
from server.dialects.openai_responses.schema import ResponsesRequest
from server.dialects.rerank import decode as rerank
from server.dialects.rerank.schema import RerankRequest, ScoreRequest
from server.dialects.tokenize.schema import DetokenizeRequest, TokenizeRequest

RERANK = set(re.findall(r"`([A-Za-z0-9_]+)`", (Path(__file__).parents[3] / "docs" / "rerank.md").read_text("utf-8")))
NAMED = set(re.findall(r"`([A-Za-z0-9_]+)`", (Path(__file__).parents[3] / "docs" / "api.md").read_text("utf-8")))


@pytest.mark.parametrize(
    "body",
    [ChatRequest, CompletionRequest, ResponsesRequest, EmbeddingRequest, TokenizeRequest, DetokenizeRequest],
)
def test_every_field_is_there(body: type[BaseModel]) -> None:
    assert set(body.model_fields) <= NAMED


@pytest.mark.parametrize(
    "names",
    [
        *(chat._UNSUPPORTED, completions._UNSUPPORTED, embeddings._UNSUPPORTED, NO_EFFECT),
        *(responses._UNSUPPORTED, responses._NO_EFFECT),
    ],
)
def test_every_refusal_is_there(names: object) -> None:
    assert set(names) <= NAMED  # type: ignore[call-overload]


@pytest.mark.parametrize("names", [RerankRequest.model_fields, ScoreRequest.model_fields, rerank._UNSUPPORTED])
def test_every_field_of_reranking_is_there(names: object) -> None:
    assert set(names) <= RERANK  # type: ignore[call-overload]


OLLAMA = set(re.findall(r"`([A-Za-z0-9_]+)`", (Path(__file__).parents[3] / "docs" / "ollama.md").read_text("utf-8")))
_BODIES = (ollama.ChatRequest, ollama.GenerateRequest, ollama.EmbedRequest, ollama.EmbeddingsRequest)


@pytest.mark.parametrize("body", [*_BODIES, ollama.Options, ollama.ShowRequest, ollama.PullRequest, ollama.Message])
def test_every_field_of_ollamas_is_there(body: type[BaseModel]) -> None:
    assert set(body.model_fields) - {"role", "content"} <= OLLAMA


@pytest.mark.parametrize("names", [ollama_options.NO_EFFECT, ollama_options.UNSUPPORTED])
def test_every_option_of_ollamas_without_effect_is_there(names: object) -> None:
    assert set(names) <= OLLAMA  # type: ignore[call-overload]
