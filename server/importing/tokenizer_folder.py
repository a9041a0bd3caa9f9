"""Read a tokenizer from a folder of the original model and compare it with a GGUF file's tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from server.importing.problems import CannotImport

NAMES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model"),
    *("vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json", "generation_config.json"),
)
"""Files that are copied if present."""
_MOST_BYTES = 100 << 20


def read_folder(folder: Path, tokens: Sequence[str] | None) -> dict[str, bytes]:
    """Return the tokenizer's files by name, byte for byte. Raises CannotImport.

    `tokens`: the texts of the file's tokens; the folder's must equal them.
    """
    if not (folder / "tokenizer.json").is_file():
        raise CannotImport(f"{folder} has no tokenizer.json; name the folder of the original model")
    files = {}
    for name in NAMES:
        file = folder / name
        if not file.is_file():
            continue
        if file.stat().st_size > _MOST_BYTES:
            raise CannotImport(f"{file} is larger than {_MOST_BYTES >> 20} MiB")
        files[name] = file.read_bytes()
    if tokens is not None:
        _compare(folder, files["tokenizer.json"], tokens)
    return files


def _compare(folder: Path, content: bytes, tokens: Sequence[str]) -> None:
    try:
        parsed = json.loads(content)
        ids = _ids(parsed)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CannotImport(f"{folder / 'tokenizer.json'} cannot be read as a tokenizer") from None
    differing = [(name, place) for name, place in ids.items() if place < len(tokens) and tokens[place] != name]
    if differing:
        name, place = differing[0]
        raise CannotImport(
            f"{folder} is another model's: token {place} is {name[:40]!r} there and {tokens[place][:40]!r} in the file "
            f"({len(differing)} differ)"
        )


def _ids(parsed: Mapping[str, Any]) -> dict[str, int]:
    vocab = parsed["model"]["vocab"]
    if isinstance(vocab, list):  # a unigram model: [token, score]
        vocab = {token: place for place, (token, _) in enumerate(vocab)}
    added = {token["content"]: token["id"] for token in parsed.get("added_tokens") or ()}
    return {str(name): int(place) for name, place in {**vocab, **added}.items()}
