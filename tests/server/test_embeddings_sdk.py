"""`/v1/embeddings` with a real model and tokenizer, through the openai SDK: the vectors are those of mlx-lm's model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import BadRequestError, OpenAI

from server.text.tokenizer import load_tokenizer
from tests.embedding_models import write_served_embedding_model
from tests.server_process import serving
from tests.tiny_models import write_served_model

pytestmark = pytest.mark.mlx

TEXTS = ["The quick brown fox", "天气很好", "hello " * 200, "x"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_served_embedding_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[OpenAI]:
    with (
        serving(str(folder), "--scheduler-max-chunk-tokens", "64") as (_, client),
        OpenAI(base_url=f"{client.base_url}/v1", api_key="none", max_retries=0) as sdk,
    ):
        yield sdk


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[list[float]]:
    """The last token's hidden state, which is the end token's, brought to the length 1."""
    import mlx.core as mx
    from mlx_lm.utils import load_model

    model, _ = load_model(folder)
    tokenizer = load_tokenizer(folder)
    vectors = []
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=True)
        assert tokenizer.token_text(ids[-1]) == "<|endoftext|>"
        hidden = model.model(mx.array([ids]))[0, -1]
        found: Any = (hidden / mx.linalg.norm(hidden)).tolist()
        vectors.append(found)
    return vectors


@pytest.mark.parametrize("options", [{}, {"encoding_format": "float"}, {"encoding_format": "base64"}], ids=str)
def test_the_vectors(client: OpenAI, expected: list[list[float]], options: dict[str, Any]) -> None:
    """Without an option the SDK asks for base64 and decodes it."""
    answer = client.embeddings.create(model="tiny", input=TEXTS, **options)
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > 200
    for item, vector in zip(answer.data, expected, strict=True):
        found: Any = item.embedding
        if options.get("encoding_format") == "base64":
            assert isinstance(found, str)
            continue
        assert found == pytest.approx(vector, abs=1e-5)


def test_token_ids(client: OpenAI, folder: Path, expected: list[list[float]]) -> None:
    ids = load_tokenizer(folder).encode(TEXTS[0], add_special_tokens=True)
    answer = client.embeddings.create(model="tiny", input=ids)
    assert answer.data[0].embedding == pytest.approx(expected[0], abs=1e-5)


def test_dimensions(client: OpenAI, expected: list[list[float]]) -> None:
    (item,) = client.embeddings.create(model="tiny", input=TEXTS[0], dimensions=8).data
    length = sum(number**2 for number in expected[0][:8]) ** 0.5
    assert item.embedding == pytest.approx([number / length for number in expected[0][:8]], abs=1e-5)


def test_it_completes_as_well(client: OpenAI) -> None:
    answer = client.completions.create(model="tiny", prompt="hello", max_tokens=3, temperature=0)
    assert answer.usage is not None
    assert answer.usage.completion_tokens > 0
    (model,) = client.models.list().data
    details: Any = (model.model_extra or {})["pippin"]
    assert details["embedding"] == {"dim": 64, "pooling": "last", "is_normalized": True}


def test_a_model_without_pooling(tmp_path: Path) -> None:
    folder = write_served_model(tmp_path / "plain")
    with (
        serving(str(folder)) as (_, client),
        OpenAI(base_url=f"{client.base_url}/v1", api_key="none", max_retries=0) as sdk,
    ):
        with pytest.raises(
            BadRequestError, match=r"'plain' does not support embeddings: its folder has no modules.json"
        ) as told:
            sdk.embeddings.create(model="plain", input="a")
        assert (told.value.code, told.value.param) == ("unsupported_model", "model")
