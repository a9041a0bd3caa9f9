"""A draft model's folder, checked beside the model that it drafts for: is it one, and are its tokens the same? No MLX.

Tokens are compared by the tokenizer.json of both, id by id. Tokens that are added to a vocabulary, such as those of a
chat template, may differ, and so may what only one of both has at its end. Where a folder has no tokenizer.json, the
sizes of both vocabularies are compared; embeddings may be padded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlx_backend.api.errors import ModelLoadError
from mlx_backend.model.checkpoint import Checkpoint, find_model, open_checkpoint

_KEY = "speculation.draft_model"
_PADDING = 64
"""One part in so many of a vocabulary may be in one of both models only."""


def open_draft(name: str, model: Path) -> Checkpoint:
    """Return the draft model, a folder or a hub id, for the model in a folder. Raises ModelLoadError."""
    try:
        path = find_model(name)
        checkpoint = open_checkpoint(path)
        difference = _difference(path, model)
    except ModelLoadError as error:
        raise ModelLoadError(f"{_KEY}: {error}") from error
    if difference is not None:
        raise ModelLoadError(
            f"{_KEY}: {display_name(path)} has another vocabulary than {display_name(model)}: {difference}; "
            "choose a model of the same family"
        )
    return checkpoint


def display_name(path: Path) -> str:
    """Return what a model's folder is called: in the hub's cache, the model's id."""
    path = path.resolve()
    if path.parent.name == "snapshots" and path.parent.parent.name.startswith("models--"):
        return path.parent.parent.name.removeprefix("models--").replace("--", "/")
    return path.name


def _difference(draft: Path, model: Path) -> str | None:
    """Why the two vocabularies are not one; None where they are."""
    first, second = _read_tokens(draft), _read_tokens(model)
    if first is None or second is None:
        sizes = [_vocab_size(path) for path in (draft, model)]
        return None if _is_padding(*sizes) else f"{sizes[0]} tokens and not {sizes[1]}"
    common = first.keys() & second.keys()
    wrong = min((token for token in common if first[token] != second[token]), default=None)
    if wrong is not None:
        return f"its token {wrong} is {first[wrong]!r} and not {second[wrong]!r}"
    return None if _is_padding(len(first), len(second)) else f"{len(first)} tokens and not {len(second)}"


def _is_padding(first: int, second: int) -> bool:
    return abs(first - second) * _PADDING <= max(first, second)


def _vocab_size(path: Path) -> int:
    config = open_checkpoint(path).config
    size = config.get("vocab_size") or (config.get("text_config") or {}).get("vocab_size")
    if not isinstance(size, int):
        raise ModelLoadError(f"{path} has no tokenizer.json, and its config.json no vocab_size to compare")
    return size


def _read_tokens(path: Path) -> dict[int, str] | None:
    """The tokens of a tokenizer.json by id, without added ones; None where there is no such file."""
    file = path / "tokenizer.json"
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        added = {int(each["id"]) for each in content.get("added_tokens") or ()}
        found = _pieces(content["model"]["vocab"])
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise ModelLoadError(f"{file} cannot be read as a tokenizer ({error}); fetch it again") from error
    return {token: piece for token, piece in found.items() if token not in added}


def _pieces(vocab: Any) -> dict[int, str]:
    """Return tokens by id, of a mapping to ids or, in a unigram model, a list of (token, score)."""
    if isinstance(vocab, Mapping):
        return {int(token): str(piece) for piece, token in vocab.items()}
    return {token: str(pair[0]) for token, pair in enumerate(vocab)}
