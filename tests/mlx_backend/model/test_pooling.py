"""What a folder says of embeddings, and in words why nothing is made of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mlx_backend.model.checkpoint import Checkpoint
from mlx_backend.model.pooling import Pooling, read_pooling
from tests.embedding_models import NORMALIZE, POOLING, TRANSFORMER, write_files, write_pooling

DENSE = {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"}
RENAMED = [
    {**module, "type": str(module["type"]).replace(".models.", ".sentence_transformer.modules.x.")}
    for module in (TRANSFORMER, POOLING, NORMALIZE)
]


def read(folder: Path, **config: Any) -> Pooling | str:
    return read_pooling(Checkpoint(folder, {"model_type": "qwen3", **config}, ()))


@pytest.mark.parametrize(("mode", "place"), [("lasttoken", "last"), ("mean_tokens", "mean"), ("cls_token", "first")])
@pytest.mark.parametrize("is_normalized", [True, False])
def test_the_modes_that_are_known(tmp_path: Path, mode: str, place: Any, is_normalized: bool) -> None:
    assert read(write_pooling(tmp_path, mode, is_normalized=is_normalized)) == Pooling(place, is_normalized)


@pytest.mark.parametrize("named", ["lasttoken", ["lasttoken"]])
def test_the_newer_files_name_the_mode(tmp_path: Path, named: Any) -> None:
    assert read(write_files(tmp_path, RENAMED, {"pooling_mode": named})) == Pooling("last", True)


def test_a_folder_that_says_nothing(tmp_path: Path) -> None:
    assert "no modules.json" in str(read(tmp_path))


@pytest.mark.parametrize(
    ("modules", "pooling", "said"),
    [
        ([TRANSFORMER, POOLING, DENSE], {"pooling_mode": "mean"}, "Transformer, Pooling, Dense"),
        ([TRANSFORMER], {"pooling_mode": "mean"}, "needs Transformer;"),
        ([], {}, "modules.json needs"),
        ([TRANSFORMER, POOLING], {"pooling_mode": "max"}, "its pooling is max;"),
        ([TRANSFORMER, POOLING], {"pooling_mode": ["mean", "max"]}, "its pooling is mean and max;"),
        ([TRANSFORMER, POOLING], {}, "its pooling is nothing;"),
        ([TRANSFORMER, POOLING], {"pooling_mode": 5}, "cannot be read"),
        ([TRANSFORMER, POOLING], [1], "cannot be read"),
        ([TRANSFORMER, {"type": "x.Pooling", "path": "elsewhere"}], {}, "cannot be read"),
        ([{"path": ""}], {}, "cannot be read"),
        ({"a": 1}, {}, "cannot be read"),
    ],
)
def test_what_cannot_be_made(tmp_path: Path, modules: Any, pooling: Any, said: str) -> None:
    assert said in str(read(write_files(tmp_path, modules, pooling)))


def test_two_modes_at_once(tmp_path: Path) -> None:
    assert "mean_tokens and max_tokens" in str(read(write_pooling(tmp_path, "mean_tokens", "max_tokens")))


def test_a_broken_file(tmp_path: Path) -> None:
    write_pooling(tmp_path, "lasttoken")
    (tmp_path / "modules.json").write_text("[", encoding="utf-8")
    assert "cannot be read" in str(read(tmp_path))


@pytest.mark.parametrize("config", [{"use_bidirectional_attention": True}, {"is_causal": False}])
def test_attention_in_both_directions(tmp_path: Path, config: dict[str, Any]) -> None:
    assert "its attention is bidirectional" in str(read(write_pooling(tmp_path, "mean_tokens"), **config))
