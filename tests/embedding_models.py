"""Files that make a tiny checkpoint an embedding model: those of sentence-transformers, and an end token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, processors

from tests.tiny_models import write_served_model

TRANSFORMER, POOLING, NORMALIZE = (
    {"idx": place, "name": str(place), "path": path, "type": f"sentence_transformers.models.{kind}"}
    for place, (path, kind) in enumerate((("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")))
)
MODES = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")


def write_pooling(folder: Path, *modes: str, is_normalized: bool = True) -> Path:
    """Write modules.json and 1_Pooling/config.json, as sentence-transformers does."""
    modules = [TRANSFORMER, POOLING, NORMALIZE] if is_normalized else [TRANSFORMER, POOLING]
    flags = {f"pooling_mode_{mode}": mode in modes for mode in MODES}
    return write_files(folder, modules, {"word_embedding_dimension": 64, **flags, "include_prompt": True})


def write_files(folder: Path, modules: Any, pooling: Any) -> Path:
    (folder / "1_Pooling").mkdir(parents=True, exist_ok=True)
    (folder / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling), encoding="utf-8")
    return folder


def write_served_embedding_model(folder: Path) -> Path:
    """Write a checkpoint with a tokenizer that appends its end token, pooled there, as in Qwen3-Embedding."""
    write_served_model(folder, model_type="qwen3")
    file = str(folder / "tokenizer.json")
    tokenizer = Tokenizer.from_file(file)
    end = "<|endoftext|>"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, tokenizer.token_to_id(end))]
    )
    tokenizer.save(file)
    return write_pooling(folder, "lasttoken")
