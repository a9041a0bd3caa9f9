"""Vocabulary size from a tokenizer's files, for a mock that writes its tokens. Imports no tokenizer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlx_backend.api.errors import ModelLoadError


def vocab_size_of(folder: Path) -> int:
    """Return the least number above every id. Raises ModelLoadError if no file of the folder contains it."""
    if not folder.is_dir():
        raise ModelLoadError(f"mock.tokenizer: there is no folder {folder}")
    found = max(_sizes(folder), default=0)
    if not found:
        raise ModelLoadError(
            f"mock.tokenizer: nothing in {folder} tells how many tokens there are; it needs tokenizer.json"
        )
    return found


def _sizes(folder: Path) -> Iterator[int]:
    told = _read(folder / "tokenizer.json")
    vocabulary = _of(told, "model").get("vocab")
    if isinstance(vocabulary, dict):
        yield from (number + 1 for number in vocabulary.values() if isinstance(number, int))
    elif isinstance(vocabulary, list):
        yield len(vocabulary)
    for added in told.get("added_tokens") or ():
        if isinstance(added, dict) and isinstance(added.get("id"), int):
            yield added["id"] + 1
    for number in _of(_read(folder / "tokenizer_config.json"), "added_tokens_decoder"):
        if str(number).isdecimal():
            yield int(number) + 1
    config = _read(folder / "config.json")
    for each in (config, _of(config, "text_config")):
        if isinstance(each.get("vocab_size"), int):
            yield each["vocab_size"]


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"mock.tokenizer: {path} cannot be read ({error})") from error
    return found if isinstance(found, dict) else {}


def _of(found: dict[str, Any], name: str) -> dict[str, Any]:
    inner = found.get(name)
    return inner if isinstance(inner, dict) else {}
