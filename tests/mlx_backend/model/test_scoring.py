"""What a folder says of reranking, and what it says that is not computed here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mlx_backend.api.reports import ScoringInfo
from mlx_backend.model.checkpoint import Checkpoint
from mlx_backend.model.scoring import is_classifier, num_labels, read_scoring

MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"},
    {"idx": 1, "name": "1", "path": "1_LogitScore", "type": "sentence_transformers.cross_encoder.modules.LogitScore"},
]


def read(folder: Path, config: dict[str, Any] | None = None) -> ScoringInfo | str:
    folder.mkdir(parents=True, exist_ok=True)
    return read_scoring(Checkpoint(folder, {"model_type": "qwen3", **(config or {})}, ()))


def with_modules(folder: Path, score: Any) -> Path:
    (folder / "1_LogitScore").mkdir(parents=True)
    (folder / "modules.json").write_text(json.dumps(MODULES))
    (folder / "1_LogitScore" / "config.json").write_text(json.dumps(score))
    return folder


@pytest.mark.parametrize("name", ["Qwen3-Reranker-0.6B-4bit", "models--Qwen--Qwen3-Reranker-0.6B/snapshots/0123"])
def test_by_its_name(tmp_path: Path, name: str) -> None:
    assert read(tmp_path / name) == ScoringInfo(kind="tokens", basis="its name", words=("yes", "no"))


def test_a_model_that_says_nothing_scores_nothing(tmp_path: Path) -> None:
    assert "does not say that it scores" in str(read(tmp_path / "Qwen3-8B"))
    assert "does not say that it scores" in str(read(tmp_path / "rerankers" / "Qwen3-8B"))


def test_by_tokens_that_are_named_the_second_being_the_relevant(tmp_path: Path) -> None:
    found = read(tmp_path / "m", {"classifier_from_token": ["no", "yes"]})
    assert found == ScoringInfo(kind="tokens", basis="config.json", words=("yes", "no"))


def test_by_a_module_of_sentence_transformers(tmp_path: Path) -> None:
    folder = with_modules(tmp_path / "m", {"true_token_id": 9693, "false_token_id": 2152})
    assert read(folder) == ScoringInfo(kind="tokens", basis="modules.json", token_ids=(9693, 2152))


def test_a_classifier_of_one_class(tmp_path: Path) -> None:
    config = {"architectures": ["Qwen3ForSequenceClassification"], "id2label": {"0": "LABEL_0"}}
    assert is_classifier(config) and num_labels(config) == 1
    assert read(tmp_path / "m", config) == ScoringInfo(kind="head", basis="config.json")


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"architectures": ["Qwen3ForSequenceClassification"]}, "2 classes"),
        ({"architectures": ["X"], "model_type": "llama", "classifier_from_token": ["no", "yes"]}, "how it is asked"),
        ({"classifier_from_token": ["no"]}, "cannot be read"),
        ({"classifier_from_token": 3}, "cannot be read"),
    ],
)
def test_what_is_not_computed_is_a_reason(tmp_path: Path, config: dict[str, Any], reason: str) -> None:
    assert reason in str(read(tmp_path / "m", config))


@pytest.mark.parametrize(
    ("score", "reason"),
    [({"true_token_id": 1, "false_token_id": None}, "one token"), ({}, "cannot be read"), ([], "cannot be read")],
)
def test_a_module_that_is_not_computed_is_a_reason(tmp_path: Path, score: Any, reason: str) -> None:
    assert reason in str(read(with_modules(tmp_path / "m", score)))


@pytest.mark.parametrize("place", ["chat_template.jinja", "tokenizer_config.json"])
def test_a_template_for_pairs_in_other_words_is_a_reason(tmp_path: Path, place: str) -> None:
    folder = tmp_path / "reranker"
    folder.mkdir()
    template = "{{ messages | selectattr('role', 'eq', 'query') }}{{ messages | selectattr('role', 'eq', 'document') }}"
    (folder / place).write_text(template if place.endswith("jinja") else json.dumps({"chat_template": template}))
    assert "roles of its own" in str(read(folder))
    told = template + "<Instruct>"
    (folder / place).write_text(told if place.endswith("jinja") else json.dumps({"chat_template": told}))
    assert isinstance(read(folder), ScoringInfo)
