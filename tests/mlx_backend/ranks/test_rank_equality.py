"""Several ranks give the tokens of one process, whatever is asked and whoever leaves; each holds its share alone."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from mlx_backend.api.interface import EngineConfig, RanksConfig
from mlx_backend.core.membership import Membership
from mlx_backend.kv_cache.grouping import divide
from mlx_backend.kv_cache.plan import RowSizes, plan_caches
from mlx_backend.model.checkpoint import open_checkpoint
from mlx_backend.model.loader import build_model, count_parameters
from mlx_backend.model.rank_shapes import StandIn, _collectives
from mlx_backend.runners.rank import RankRunner
from tests.ranks_scenario import alone, over_ranks
from tests.tiny_models import write_model, write_quantized_model

pytestmark = pytest.mark.mlx

QWEN3_MOE = {
    "model_type": "qwen3_moe",
    "num_hidden_layers": 3,
    "moe_intermediate_size": 32,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "norm_topk_prob": True,
    "tie_word_embeddings": False,
}
HELD = re.compile(r"rank (\d) holds ([\d.]+) MB of weights")


def check(folder: Path, parallel: str, count: int = 2, bits: int | None = None, split: str = "") -> str:
    """Compare all that the scenario asks for; return what the ranks have logged."""
    expected: dict[str, Any] = json.loads(json.dumps(alone(folder, bits=bits)))
    found, log = over_ranks(folder, parallel, count, bits, split)
    assert expected["cached"], "nothing was taken from what was kept"
    assert found == expected
    assert len(HELD.findall(log)) == count, log
    return log


def test_two_ranks_give_the_tokens_of_one_process(tmp_path: Path) -> None:
    check(write_model(tmp_path / "llama", "llama"), "tensor")


def test_a_pipeline_gives_the_tokens_of_one_process_with_quantized_weights(tmp_path: Path) -> None:
    check(write_quantized_model(tmp_path / "deepseek_v3", "deepseek_v3", moe_intermediate_size=64), "pipeline")


def test_ranks_of_a_pipeline_order_their_rows_alike_whatever_they_hold(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_model(tmp_path / "deepseek_v3", "deepseek_v3", kv_lora_rank=4096))
    config = EngineConfig(model_path="", ranks=RanksConfig(count=2, parallel="pipeline"))
    runners, alone = [], []
    for rank in range(2):
        runner = RankRunner(config, Membership(rank, ("127.0.0.1:1", "127.0.0.1:2"), "pipeline"))
        runner._group = StandIn(rank, 2)
        with _collectives(2, []):
            _, skeleton = runner._build(checkpoint)
        alone.append(RowSizes(plan_caches(skeleton.caches, config.kv_cache)))
        runners.append(runner)
    lengths = [2300, 2300, 200, 200, 200]
    assert divide(lengths, alone[0]) != divide(lengths, alone[1]), "2 layers and 1: each by itself would differ"
    assert runners[0]._num_parameters == runners[1]._num_parameters == count_parameters(build_model(checkpoint))
    first, second = (runner._row_sizes() for runner in runners)
    assert [first(length) for length in lengths] == [second(length) for length in lengths]
    assert first(200) == alone[0](200) + alone[1](200)


def case(
    kind: str,
    parallel: str,
    count: int = 2,
    *,
    bits: int | None = None,
    split: str = "",
    is_quantized: bool = False,
    **changes: Any,
) -> Any:
    """A model over so many ranks; `bits`: of the KV caches."""
    named = [kind, parallel, f"over {count}", f"as {split}" if split else "", f"KV {bits}" if bits else ""]
    identity = " ".join(filter(None, [*named, "quantized" if is_quantized else ""]))
    return pytest.param(kind, parallel, count, bits, split, is_quantized, changes, id=identity)


SOAKED = (
    case("llama", "tensor", bits=8, head_dim=32),
    case("llama", "tensor", is_quantized=True),
    case("llama", "tensor", 3, num_attention_heads=6, num_key_value_heads=3, intermediate_size=192),
    case("llama", "tensor", 4, num_key_value_heads=4),
    case("gpt_oss", "tensor"),
    case("gpt_oss", "tensor", bits=8, head_dim=32),
    case("qwen3_moe", "tensor"),
    case("qwen3_moe", "tensor", bits=8, head_dim=32),
    case("deepseek_v3", "tensor"),
    case("deepseek_v3", "tensor", bits=8),
    case("deepseek_v3", "tensor", is_quantized=True, moe_intermediate_size=64),
    case("qwen3_moe", "pipeline"),
    case("deepseek_v3", "pipeline"),
    case("deepseek_v3", "pipeline", bits=8),
    case("deepseek_v3", "pipeline", 3),
    case("qwen3_moe", "pipeline", split="1,2"),
    case("qwen3_moe", "pipeline", 3, split="1,3,1", num_hidden_layers=5),
    case("qwen3_moe", "pipeline", split="1,2", bits=8, head_dim=32),
    case("qwen3_moe", "pipeline", 3, split="3,1,1", is_quantized=True, num_hidden_layers=5),
    case("deepseek_v3", "pipeline", split="1,2"),
    case("deepseek_v3", "pipeline", 3, split="1,1,3", num_hidden_layers=5),
    case("deepseek_v3", "pipeline", split="1,2", bits=8),
    case("deepseek_v3", "pipeline", 3, split="2,1,2", bits=8, num_hidden_layers=5),
    case("deepseek_v3", "pipeline", split="1,2", is_quantized=True, moe_intermediate_size=64),
)


@pytest.mark.soak
@pytest.mark.parametrize(("kind", "parallel", "count", "bits", "split", "is_quantized", "changes"), SOAKED)
def test_ranks_give_the_tokens_of_one_process(
    tmp_path: Path,
    kind: str,
    parallel: str,
    count: int,
    bits: int | None,
    split: str,
    is_quantized: bool,
    changes: dict[str, Any],
) -> None:
    name, changes = ("llama", {**QWEN3_MOE, **changes}) if kind == "qwen3_moe" else (kind, changes)
    write = write_quantized_model if is_quantized else write_model
    check(write(tmp_path / kind, name, **changes), parallel, count, bits, split)
