"""What can be split among ranks and how, told before anything is read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mlx_backend.api.errors import ModelLoadError
from mlx_backend.api.interface import EngineConfig, RanksConfig
from mlx_backend.core.membership import Membership
from mlx_backend.factory import check_split
from mlx_backend.model import sharding
from mlx_backend.model.checkpoint import open_checkpoint
from mlx_backend.model.loader import build_model
from mlx_backend.model.rank_shapes import StandIn
from tests.tiny_models import write_model

pytestmark = pytest.mark.mlx

CONFIG = {"model_type": "made_up", "num_attention_heads": 8, "num_key_value_heads": 4}


@pytest.mark.parametrize(
    ("name", "ranks", "says"),
    [
        (
            "llama",
            RanksConfig(count=2, parallel="pipeline"),
            "has no pipeline parallelism for llama models; possible: tensor over 2 ranks",
        ),
        ("llama", RanksConfig(count=3), "cannot divide 64 rows or columns of self_attn.q_proj"),
        ("llama", RanksConfig(count=4), "2 key and value heads"),
        ("llama", RanksConfig(count=2, split="1,2"), "split applies only to a pipeline"),
        ("deepseek_v3", RanksConfig(count=2, parallel="pipeline", split="1,1"), "has 2 layers, but the model has 3"),
        ("deepseek_v3", RanksConfig(count=2, parallel="pipeline", split="1,1,1"), "has 3 ranks, not 2"),
        ("deepseek_v3", RanksConfig(count=2, parallel="pipeline", split="3,0"), "ranks.split: split '3,0'"),
        ("deepseek_v3", RanksConfig(count=2, parallel="pipeline", split="a,2"), "ranks.split: split 'a,2'"),
        ("deepseek_v3", RanksConfig(count=4, parallel="pipeline"), "more ranks than the model's 3 layers"),
    ],
)
def test_a_split_that_cannot_be_is_refused(tmp_path: Path, name: str, ranks: RanksConfig, says: str) -> None:
    config = EngineConfig(model_path=str(write_model(tmp_path, name)), ranks=ranks)
    with pytest.raises(ModelLoadError, match=says) as caught:
        check_split(config)
    assert "\n" not in str(caught.value)


def test_an_uneven_pipeline_is_what_was_asked_for(tmp_path: Path) -> None:
    ranks = RanksConfig(count=2, parallel="pipeline", split="1,2")
    check_split(EngineConfig(model_path=str(write_model(tmp_path, "deepseek_v3")), ranks=ranks))
    for rank, layers in ((0, [2]), (1, [0, 1])):
        model = build_model(open_checkpoint(tmp_path))
        sharding.split(model, {}, StandIn(rank, 2), Membership(rank, ("a:1", "b:2"), "pipeline", (1, 2)))
        assert [place for place, layer in enumerate(model.model.layers) if layer is not None] == layers


def test_a_group_is_described_to_mlx_by_its_file_and_variables() -> None:
    ring = Membership(1, ("10.0.0.1:7401", "10.0.0.2:7401"), "tensor")
    assert sharding.describe(ring, "f") == (
        "ring",
        [["10.0.0.1:7401"], ["10.0.0.2:7401"]],
        {"MLX_RANK": "1", "MLX_HOSTFILE": "f"},
    )
    several = replace(ring, further=(("10.0.1.1:7401",), ("10.0.1.2:7401",)))
    assert sharding.describe(several, "f")[1] == [
        ["10.0.0.1:7401", "10.0.1.1:7401"],
        ["10.0.0.2:7401", "10.0.1.2:7401"],
    ]
    rdma = replace(ring, rdma=((None, "rdma_en5"), ("rdma_en5", None)))
    assert sharding.describe(rdma, "f") == (
        "jaccl",
        [[None, "rdma_en5"], ["rdma_en5", None]],
        {"MLX_RANK": "1", "MLX_IBV_DEVICES": "f", "MLX_JACCL_COORDINATOR": "10.0.0.1:7401"},
    )


def test_a_rank_has_its_share_of_the_heads() -> None:
    nested = {**CONFIG, "text_config": {"num_attention_heads": 16}}
    tensor = sharding.local_config(nested, Membership(0, ("a:1", "b:2"), "tensor"))
    assert (tensor["num_attention_heads"], tensor["text_config"]["num_attention_heads"]) == (4, 8)
    assert sharding.local_config(nested, Membership(0, ("a:1", "b:2"), "pipeline")) == nested
    assert nested["num_attention_heads"] == 8


def test_a_process_belongs_to_one_group(monkeypatch: pytest.MonkeyPatch) -> None:
    membership = Membership(0, ("a:1",), "tensor")
    monkeypatch.setattr(sharding, "_joined", [membership])
    with pytest.raises(ModelLoadError, match="restart"):
        sharding.join(membership)
