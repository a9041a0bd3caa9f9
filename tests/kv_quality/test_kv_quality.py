"""The yardstick of quantized KV caches: what it measures is what it says. On a tiny model of random weights."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model

from mlx_backend.api.interface import KVCacheConfig
from scripts.kv_quality import __main__ as command
from scripts.kv_quality.expanded import expand
from scripts.kv_quality.measure import Reader, Text, read_all
from tests.tiny_models import VOCAB_SIZE, write_model

pytestmark = pytest.mark.mlx


@pytest.fixture
def loaded(tmp_path: Path) -> tuple[Any, dict[str, Any]]:
    changes: dict[str, Any] = {"kv_lora_rank": 64, "qk_rope_head_dim": 32, "qk_nope_head_dim": 32, "q_lora_rank": None}
    model, config = load_model(write_model(tmp_path / "deepseek_v3", "deepseek_v3", **changes))
    return model, config


def texts() -> list[Text]:
    source = random.Random(2)

    def made() -> Iterator[Text]:
        for length in (5, 60, 700):
            yield [source.randrange(VOCAB_SIZE) for _ in range(length)], [i % 3 == 2 for i in range(length)]

    return list(made())


def test_full_precision_drifts_from_itself_by_nothing_and_fewer_bits_by_more(loaded: tuple[Any, Any]) -> None:
    settings = {"full": KVCacheConfig(), **{str(b): KVCacheConfig(bits=b, group_size=32) for b in (8, 6, 4)}}
    found = read_all(Reader(*loaded), texts(), settings, lambda name: None)
    assert (found["full"].kl, found["full"].same_top) == (0.0, 1.0)
    assert 0 < found["8"].kl < found["6"].kl < found["4"].kl
    assert found["4"].worst_kl >= found["4"].kl
    sizes = [each.bytes_per_token for each in found.values()]
    assert sizes == sorted(sizes, reverse=True)
    assert {each.full_bytes_per_token for each in found.values()} == {sizes[0]}


def test_perplexity_is_that_of_the_marked_tokens(loaded: tuple[Any, Any]) -> None:
    model, config = loaded
    (text,) = texts()[1:2]
    logits = model(mx.array([text[0]]), cache=make_prompt_cache(model))[0].astype(mx.float32)
    logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    marked = [i for i in range(1, 60) if text[1][i]]
    expected = mx.exp(-mx.stack([logprobs[i - 1, text[0][i]] for i in marked]).mean())
    found = read_all(Reader(model, config), [text], {"full": KVCacheConfig()}, lambda name: None)["full"]
    assert found.perplexity == pytest.approx(float(expected), rel=1e-4)


def test_the_expanded_model_is_the_same_function(loaded: tuple[Any, Any]) -> None:
    model, config = loaded
    latent = Reader(model, config).read(texts(), KVCacheConfig())[0]
    expand(model)
    reader = Reader(model, config)
    expanded, held, _ = reader.read(texts(), KVCacheConfig())
    for a, b in zip(latent, expanded, strict=True):
        assert mx.allclose(a, b, atol=2e-3)
    split = reader.read(texts(), KVCacheConfig(key_bits=8, value_bits=4, group_size=32))[1]
    assert split < held


def test_what_is_measured_goes_between_the_marks(tmp_path: Path) -> None:
    file = tmp_path / "kv-cache.md"
    file.write_text(f"before\n{command.BEGIN}\nold\n{command.END}\nafter\n")
    command.write_into(file, "new | table")
    assert file.read_text() == f"before\n{command.BEGIN}\nnew | table\n{command.END}\nafter\n"


def test_the_settings_that_are_asked_are_measured() -> None:
    assert set(command.ASKED) <= set(command.LATENT)
    firsts = {next(iter(names)) for names in (command.LATENT, command.EXPANDED, command.ASKED)}
    assert firsts == {"full"}
