"""Tiny models that score documents, written into folders: by two tokens, and with a score of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from tests.tiny_models import write_model
from tests.tiny_tokenizer import write_tiny_tokenizer

QWEN3: dict[str, Any] = {
    "model_type": "qwen3",
    "num_hidden_layers": 2,
    "tie_word_embeddings": True,
    "rms_norm_eps": 1e-6,
}


def write_reranker(folder: Path, **changes: Any) -> Path:
    """Write a Qwen3 with a tokenizer that has the tokens `yes` and `no`."""
    write_tiny_tokenizer(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens(["yes", "no"])
    tokenizer.save(str(folder / "tokenizer.json"))
    return _write(folder, tokenizer.get_vocab_size(), **changes)


def write_classifier(folder: Path, num_labels: int = 1, **changes: Any) -> Path:
    """Write a Qwen3ForSequenceClassification, with a tokenizer: no head, and a score of so many numbers."""
    import mlx.core as mx

    write_tiny_tokenizer(folder)
    size = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size()
    labels = {"id2label": {str(n): f"LABEL_{n}" for n in range(num_labels)}}
    _write(folder, size, architectures=["Qwen3ForSequenceClassification"], **labels, **changes)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    weights = {**mx.load(str(folder / "model.safetensors"))}
    weights["score.weight"] = mx.random.normal((num_labels, config["hidden_size"])) / 8
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})
    return folder


def _write(folder: Path, vocab_size: int, **changes: Any) -> Path:
    return write_model(folder, "llama", vocab_size=vocab_size, **{**QWEN3, **changes})
