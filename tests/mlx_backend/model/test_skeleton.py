"""Shapes read from models that are built and never computed, against the models themselves."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models.cache import KVCache, make_prompt_cache
from mlx_lm.models.deepseek_v32 import Indexer
from mlx_lm.models.deepseek_v32 import ModelArgs as IndexerArgs
from mlx_lm.models.llama import Model as Llama
from mlx_lm.models.llama import ModelArgs as LlamaArgs
from mlx_lm.utils import load_model

from mlx_backend.api.errors import ModelLoadError
from mlx_backend.kv_cache.latent_groups import LatentShape
from mlx_backend.kv_cache.plan import CachePlan
from mlx_backend.model.checkpoint import open_checkpoint
from mlx_backend.model.skeleton import Quantization, _index_bytes, from_checkpoint, from_config, read_model
from mlx_backend.planning.memory import kv_bytes, prefill_bytes
from tests.latent_models import CONFIGS as LATENT
from tests.tiny_models import COMMON, CONFIGS, write_model

pytestmark = pytest.mark.mlx

PROFILES = Path(__file__).parents[3] / "server" / "profiles"

R1: dict[str, Any] = {**json.loads((PROFILES / "deepseek-r1-4bit.json").read_text()), "quantization": None}


@pytest.mark.parametrize("name", ["llama", "deepseek_v3", "gpt_oss", "gemma3", "falcon_h1", "llama4"])
def test_weights_and_kv_caches_to_the_byte(tmp_path: Path, name: str) -> None:
    folder = write_model(tmp_path / name, name)
    read = from_checkpoint(open_checkpoint(folder))
    model, _ = load_model(folder)
    arrays = [array for _, array in tree_flatten(model.parameters())]
    assert read.shape.weights_bytes == sum(array.nbytes for array in arrays)
    assert read.shape.num_parameters == sum(array.size for array in arrays)
    caches = make_prompt_cache(model)
    model(mx.ones((1, 256), dtype=mx.int32), cache=caches)
    if (
        name == "gpt_oss"
    ):  # after a chunk longer than its window mlx-lm's cache holds the chunk; a token later, the window
        model(mx.ones((1, 1), dtype=mx.int32), cache=caches)
        caches = [cache for cache in caches if not hasattr(cache, "max_size")]
        plain = [CachePlan(shape) for shape in read.caches if shape.window is None]
        assert sum(cache.nbytes for cache in caches) == kv_bytes(plain, 257)
        return
    windows = [shape.window for shape in read.caches if shape.window is not None and shape.window < 256]
    held = sum(cache.nbytes for cache in caches)
    planned = kv_bytes([CachePlan(shape) for shape in read.caches], 256)
    if windows:
        assert held > planned  # a window that has just seen a chunk
    else:
        assert held == planned


def test_deepseek_r1_from_its_config_alone() -> None:
    full, quantized = from_config(R1), from_config(R1, Quantization(bits=4, group_size=64))
    assert full.shape.num_parameters == quantized.shape.num_parameters == 671_026_419_200
    assert full.shape.weights_bytes == pytest.approx(1342.1e9, rel=1e-4)
    assert quantized.shape.weights_bytes == 377_606_822_912
    assert quantized.shape.active_bytes == pytest.approx(20.76e9, rel=1e-3)
    assert quantized.shape.active_parameters == pytest.approx(36.63e9, rel=1e-3)
    assert kv_bytes([CachePlan(shape) for shape in quantized.caches], 256) == 256 * 70_272
    attention = quantized.shape.attention
    assert attention is not None and attention.is_latent and attention.is_grouped
    assert attention.latents == LatentShape(num_heads=128, key_dim=128, value_dim=128, rope_dim=64, latent_dim=512)


@pytest.mark.parametrize(("name", "is_grouped"), [("mistral4", False), ("kimi_k3", True), ("deepseek_v32", True)])
def test_latents_that_chunks_are_computed_with_some_heads_at_a_time(name: str, is_grouped: bool) -> None:
    config = {"model_type": name, **LATENT[name]}
    if name == "kimi_k3":
        config = {"model_type": name, "max_position_embeddings": 2048, "text_config": config}
    attention = from_config(config).shape.attention
    assert attention is not None and attention.is_latent
    assert attention.is_grouped == is_grouped


@pytest.mark.parametrize(("num_heads", "step", "context"), [(16, 512, 4096), (64, 64, 8192)])
def test_the_scores_of_an_indexer_are_planned(num_heads: int, step: int, context: int) -> None:
    indexer = Indexer(IndexerArgs(hidden_size=256, index_n_heads=num_heads, index_topk=64, q_lora_rank=128))
    indexer.set_dtype(mx.bfloat16)
    cache, before = KVCache(), mx.zeros((1, 1, context - step, 128), mx.bfloat16)
    cache.update_and_fetch(before, before)
    inputs, ranks = mx.ones((1, step, 256), mx.bfloat16), mx.ones((1, step, 128), mx.bfloat16)
    mask = mx.tril(mx.ones((step, context), mx.bool_), k=context - step)
    mx.eval(indexer.parameters(), cache.state, inputs, ranks, mask)
    mx.clear_cache()
    base = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(indexer(inputs, ranks, mask, cache=cache))
    planned = _index_bytes(indexer, 2) * step * context
    assert 0.75 * planned < mx.get_peak_memory() - base < 1.05 * planned


def test_an_indexer_makes_a_long_prompts_chunks_dearer() -> None:
    config = {"model_type": "deepseek_v32", **LATENT["deepseek_v32"], "index_n_heads": 64, "index_topk": 16}
    skeleton = from_config(config)
    plans = [CachePlan(shape) for shape in skeleton.caches]
    without = replace(skeleton.shape, index_bytes=0)
    more = prefill_bytes(skeleton.shape, plans, 256, 65536) - prefill_bytes(without, plans, 256, 65536)
    assert more > 256 * 65536 * 64 * skeleton.shape.itemsize // 2


def test_the_quantization_that_a_config_names_is_taken() -> None:
    named = {**R1, "quantization": {"bits": 3, "group_size": 64, "lm_head": {"bits": 8, "group_size": 64}}}
    wide = from_config({**R1, "quantization": {"bits": 3, "group_size": 64}})
    assert from_config(named).shape.weights_bytes - wide.shape.weights_bytes == 129_280 * 7168 * 5 // 8
    assert wide.shape.weights_bytes == pytest.approx(293.7e9, rel=1e-3)


def test_tied_embeddings_are_read_whole(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "llama", "llama")
    tied = from_checkpoint(open_checkpoint(folder)).shape
    assert tied.active_bytes == tied.weights_bytes
    config = {**json.loads((folder / "config.json").read_text()), "tie_word_embeddings": False}
    own = from_config(config).shape
    assert own.weights_bytes - own.active_bytes == (config["vocab_size"] - 1) * config["hidden_size"] * 2


class _OwnCache:
    """A window of 64 tokens, and a number for each 4 tokens, in arrays that no other cache has."""

    def __init__(self) -> None:
        self.num_tokens = 0

    @property
    def nbytes(self) -> int:
        return 100 * min(64, self.num_tokens) + 8 * (self.num_tokens // 4)


def test_a_cache_of_an_unknown_kind_is_counted_as_it_grows() -> None:
    config = {**COMMON, **CONFIGS["llama"]}
    plain = from_config(config)

    class Model(Llama):
        def make_cache(self) -> list[Any]:
            return [_OwnCache() for _ in self.layers]

        def __call__(self, tokens: mx.array, cache: list[Any]) -> mx.array:
            for each in cache:
                each.num_tokens += tokens.shape[1]
            return super().__call__(tokens)

    read = read_model(Model(LlamaArgs.from_dict(config)), config)
    assert read.shape.attention is None
    assert plain.shape.attention is not None
    assert {shape.kind for shape in read.caches} == {"_OwnCache"}
    for shape in read.caches:
        assert shape.state_bytes == 6400
        assert shape.token_bytes == 2
    assert kv_bytes([CachePlan(shape) for shape in read.caches], 1024, 3) == 3 * 2 * (6400 + 2048)


@pytest.mark.parametrize(("name", "has_sinks"), [("llama", False), ("gpt_oss", True)])
def test_attention_with_sinks(name: str, has_sinks: bool) -> None:
    attention = from_config({**COMMON, **CONFIGS[name]}).shape.attention
    assert attention is not None
    assert attention.has_sinks == has_sinks


@pytest.mark.parametrize(("name", "heads"), [("falcon_h1", 4), ("mamba2", 8), ("llama4", 0)])
def test_heads_of_state_space_layers(name: str, heads: int) -> None:
    assert from_config({**COMMON, **CONFIGS[name]}).shape.ssm_heads == heads


def test_an_unknown_architecture() -> None:
    with pytest.raises(ModelLoadError, match="model_type 'nonesuch' does not describe a valid model"):
        from_config({"model_type": "nonesuch"})
