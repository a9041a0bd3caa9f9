"""What ranks hold by their shapes, against models that are split by mlx-lm and held."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten

from mlx_backend.api.errors import ModelLoadError
from mlx_backend.kv_cache.plan import CachePlan
from mlx_backend.model.rank_shapes import Build, StandIn, read_ranks, read_splits
from mlx_backend.model.skeleton import Quantization, build_from_config, from_config
from mlx_backend.planning.memory import kv_bytes
from tests.latent_models import CONFIGS as LATENT
from tests.tiny_models import COMMON, CONFIGS

pytestmark = pytest.mark.mlx

PROFILES = Path(__file__).parents[3] / "server" / "profiles"
QWEN3_MOE = {
    **COMMON,
    "model_type": "qwen3_moe",
    "num_hidden_layers": 5,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "moe_intermediate_size": 64,
    "norm_topk_prob": True,
    "tie_word_embeddings": False,
}
TINY: dict[str, dict[str, Any]] = {
    "llama": {**COMMON, **CONFIGS["llama"]},
    "deepseek_v3": {**COMMON, **CONFIGS["deepseek_v3"]},
    "gpt_oss": {**COMMON, **CONFIGS["gpt_oss"]},
    "qwen3_moe": QWEN3_MOE,
}


def build_of(config: dict[str, Any], quantization: Quantization | None = None) -> Build:
    return lambda: (build_from_config(config, quantization), config)


def profile(name: str) -> Build:
    config = json.loads((PROFILES / f"{name}.json").read_text())
    return build_of(config)


def held_bytes(model: nn.Module) -> int:
    arrays = [array for _, array in tree_flatten(model.parameters())]
    mx.eval(arrays)
    return sum(array.nbytes for array in arrays)


@pytest.mark.parametrize("quantization", [None, Quantization(4, 32)], ids=["bfloat16", "4 bits"])
@pytest.mark.parametrize("name", TINY)
def test_tensors_to_the_byte(name: str, quantization: Quantization | None) -> None:
    build = build_of(TINY[name], quantization)
    splits = read_splits(build)
    possible = 2 in splits.tensor_sizes
    assert possible != (name in ("gpt_oss", "deepseek_v3") and quantization is not None)  # one group of 32 each
    if not possible:
        with pytest.raises(ModelLoadError, match="1 quantization groups of"):
            read_ranks(build, splits, "tensor", 2)
        return
    ranks = read_ranks(build, splits, "tensor", 2)
    for rank in range(2):
        model, _ = build()
        model.shard(StandIn(rank, 2))
        assert ranks.ranks[rank].shape.weights_bytes == held_bytes(model)
    whole = from_config(TINY[name], quantization)
    assert ranks.ranks[0].shape.weights_bytes < whole.shape.weights_bytes
    is_latent = name == "deepseek_v3"  # latents are the same on every rank
    per_token = [
        kv_bytes([CachePlan(shape) for shape in caches], 256) for caches in (whole.caches, ranks.ranks[0].caches)
    ]
    assert per_token[1] * (1 if is_latent else 2) == per_token[0]
    assert ranks.ranks[0].shape.attention is not None and ranks.ranks[0].shape.attention.num_heads == 2


@pytest.mark.parametrize("split", [None, (1, 4), (3, 2)])
def test_pipelines_to_the_byte(split: tuple[int, ...] | None) -> None:
    build = build_of(QWEN3_MOE, Quantization(4, 32))
    ranks = read_ranks(build, read_splits(build), "pipeline", 2, split)
    assert ranks.split == (split or (3, 2))
    for rank in range(2):
        model, _ = build()
        model.model.pipeline(StandIn(rank, 2), **({"split": list(split)} if split else {}))
        assert ranks.ranks[rank].shape.weights_bytes == held_bytes(model)
        assert len(ranks.ranks[rank].caches) == ranks.ranks[rank].num_layers == ranks.split[rank]


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("name", TINY)
def test_what_is_refused_is_what_cannot_be_split(name: str, size: int) -> None:
    """mlx-lm splits some that it should not: it rounds heads down."""
    build = build_of(TINY[name], Quantization(4, 32))
    model, config = build()
    is_split = size % 2 == 0 and int(config["num_key_value_heads"]) % size == 0
    try:
        model.shard(StandIn(0, size))
    except ValueError:
        is_split = False
    assert (size in read_splits(build).tensor_sizes) == is_split


def test_heads_that_mlx_lm_would_round_down_are_refused() -> None:
    build = build_of({**TINY["llama"], "num_key_value_heads": 1})
    with pytest.raises(ModelLoadError, match="1 key and value heads"):
        read_ranks(build, read_splits(build), "tensor", 2)


@pytest.mark.parametrize(
    ("name", "parallel", "gigabytes"),
    [
        ("deepseek-r1-4bit", "tensor", [189.7, 189.7]),
        ("deepseek-r1-4bit", "pipeline", [201.8, 176.9]),
        ("qwen3-235b-4bit", "tensor", [66.5, 66.5]),
        ("gpt-oss-120b-mxfp4", "tensor", [32.3, 32.3]),
    ],
)
def test_large_models_from_their_configs_alone(name: str, parallel: Any, gigabytes: list[float]) -> None:
    build = profile(name)
    ranks = read_ranks(build, read_splits(build), parallel, 2)
    assert [round(rank.shape.weights_bytes / 1e9, 1) for rank in ranks.ranks] == gigabytes


def test_messages_of_a_token() -> None:
    build = profile("deepseek-r1-4bit")
    splits = read_splits(build)
    tensor = read_ranks(build, splits, "tensor", 2).messages
    assert Counter((each.kind, each.num_bytes) for each in tensor) == {("all_sum", 14336): 122}
    pipeline = read_ranks(build, splits, "pipeline", 3).messages
    assert Counter((each.kind, each.num_bytes) for each in pipeline) == {("send", 14336): 2, ("all_gather", 14336): 1}


def test_four_ranks_cannot_divide_the_90_groups_of_gpt_oss() -> None:
    build = profile("gpt-oss-120b-mxfp4")
    with pytest.raises(ModelLoadError, match=r"90 quantization groups of mlp\.experts\.down_proj; possible: tensor"):
        read_ranks(build, read_splits(build), "tensor", 4)


def test_a_model_that_mlx_lm_does_not_split() -> None:
    build = build_of({**COMMON, **CONFIGS["gemma3"]})
    splits = read_splits(build)
    assert (splits.divisibles, splits.has_pipeline) == (None, False)
    with pytest.raises(ModelLoadError, match="possible: one machine only"):
        read_ranks(build, splits, "pipeline", 2)


def test_a_model_that_is_split_evenly_only() -> None:
    text = {"model_type": "kimi_k3", **LATENT["kimi_k3"]}
    config = {"model_type": "kimi_k3", "max_position_embeddings": 2048, "text_config": text}
    splits = read_splits(build_of(config))
    assert splits.has_pipeline and not splits.has_uneven_pipeline


def test_collectives_are_as_they_were() -> None:
    names = ("all_sum", "all_gather", "send", "recv_like")
    before = [getattr(mx.distributed, name) for name in names] + [mx.eval]
    build = build_of(TINY["llama"])
    read_ranks(build, read_splits(build), "tensor", 2)
    assert [getattr(mx.distributed, name) for name in names] + [mx.eval] == before
