"""Reranking settings of a model folder: how the relevance of a document for a query is read off the model. No MLX.

Three kinds of folders say so: sentence-transformers' modules.json with LogitScore, a `config.json` of a sequence
classifier or with vLLM's `classifier_from_token`, and a Qwen3-Reranker by its name. A folder that says nothing, or asks
for what is not computed here, does not rerank: that is a reason in words, and no error.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlx_backend.api.reports import ScoringInfo
from mlx_backend.model.checkpoint import Checkpoint

_FAMILY = "qwen3"
"""Models of this family are asked in the words of Qwen3-Reranker; of others it is not known how."""
_CLASSIFIER = "ForSequenceClassification"


def is_classifier(config: Mapping[str, Any]) -> bool:
    """Return whether a config.json is of a sequence classifier: a model with a score in place of its head."""
    return any(str(name).endswith(_CLASSIFIER) for name in config.get("architectures") or ())


def num_labels(config: Mapping[str, Any]) -> int:
    """Return how many numbers a sequence classifier gives."""
    labels = config.get("id2label")
    return len(labels) if isinstance(labels, dict) and labels else int(config.get("num_labels") or 2)


def read_scoring(checkpoint: Checkpoint) -> ScoringInfo | str:
    """Return how the model of a folder scores, or why it does not."""
    try:
        found = _read_kind(checkpoint)
        if isinstance(found, str):
            return found
        if not str(checkpoint.config["model_type"]).startswith(_FAMILY):
            return "it is not known how it is asked for the relevance of a document; Qwen3-Reranker's words are known"
        if _has_other_words(checkpoint.path):
            return "its chat template has roles of its own for a query and a document, which are not supported"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"what its folder says of scores cannot be read ({type(error).__name__}: {error})"
    return found


def _read_kind(checkpoint: Checkpoint) -> ScoringInfo | str:
    config = checkpoint.config
    if is_classifier(config):
        number = num_labels(config)
        return ScoringInfo(kind="head", basis="config.json") if number == 1 else f"it tells {number} classes apart"
    modules = checkpoint.path / "modules.json"
    if modules.is_file():
        types = {str(each["type"]).rpartition(".")[2]: str(each["path"]) for each in _read(modules)}
        if "LogitScore" in types:
            return _of_module(_read(checkpoint.path / types["LogitScore"] / "config.json"))
    named = config.get("classifier_from_token")
    if named is not None:
        false, true = named
        return ScoringInfo(kind="tokens", basis="config.json", words=(str(true), str(false)))
    if "rerank" in _name_of(checkpoint.path).lower():
        return ScoringInfo(kind="tokens", basis="its name", words=("yes", "no"))
    return (
        "its folder does not say that it scores: no LogitScore in a modules.json, no classifier in config.json, and no "
        "'rerank' in its name"
    )


def _name_of(folder: Path) -> str:
    """Return the folder's name; in the download cache, that of the model whose snapshot it is."""
    parts = folder.absolute().parts
    return parts[-3] if parts[-2:-1] == ("snapshots",) else parts[-1]


def _of_module(config: Mapping[str, Any]) -> ScoringInfo | str:
    true, false = config["true_token_id"], config.get("false_token_id")
    if false is None:
        return "its score is the logit of one token; the difference of two is known"
    return ScoringInfo(kind="tokens", basis="modules.json", token_ids=(int(true), int(false)))


def _has_other_words(folder: Path) -> bool:
    """Return whether the folder's chat template is for pairs, and not in the words of Qwen3-Reranker."""
    file, settings = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    if file.is_file():
        template = file.read_text(encoding="utf-8")
    else:
        template = str(_read(settings).get("chat_template") or "") if settings.is_file() else ""
    is_for_pairs = all(f"'{role}'" in template or f'"{role}"' in template for role in ("query", "document"))
    return is_for_pairs and "<Instruct>" not in template


def _read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))
