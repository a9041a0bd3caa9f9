"""A draft model's folder: what is refused, and what of two vocabularies may differ."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from mlx_backend.api.errors import ModelLoadError
from mlx_backend.model.draft_files import display_name, open_draft

PIECES = {f"piece{i}": i for i in range(640)}
HEADER = (2).to_bytes(8, "little") + b"{}"


def write(folder: Path, vocab: Any = None, *, added: tuple[int, ...] = (), vocab_size: int = 640) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": vocab_size}))
    (folder / "model.safetensors").write_bytes(HEADER)
    if vocab is not None:
        tokens = [{"id": token, "content": f"<{folder.name}{token}>"} for token in added]
        (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocab}, "added_tokens": tokens}))
    return folder


def unigram(pieces: dict[str, int]) -> list[tuple[str, float]]:
    return [(piece, -1.0) for piece in pieces]


@pytest.mark.parametrize(
    ("draft", "model"),
    [
        ({"vocab": PIECES}, {"vocab": PIECES}),
        ({"vocab": PIECES, "vocab_size": 700}, {"vocab": PIECES}),  # the embedding is padded
        ({"vocab": PIECES}, {"vocab": unigram(PIECES)}),
        ({"vocab": PIECES, "added": (640, 641)}, {"vocab": PIECES, "added": (640,)}),
        ({"vocab": {**PIECES, "<chat>": 640}, "added": (640,)}, {"vocab": {**PIECES, "<think>": 640}, "added": (640,)}),
        ({"vocab": {**PIECES, "more": 640}}, {"vocab": PIECES}),
        ({}, {"vocab": PIECES}),
        ({}, {"vocab_size": 650}),
        ({"vocab": PIECES, "vocab_size": 650}, {}),
    ],
)
def test_vocabularies_that_are_one(draft: dict[str, Any], model: dict[str, Any], tmp_path: Path) -> None:
    folder = write(tmp_path / "draft", **draft)
    assert open_draft(str(folder), write(tmp_path / "model", **model)).path == folder


@pytest.mark.parametrize(
    ("draft", "says"),
    [
        ({"vocab": {**PIECES, "piece7": 8, "piece8": 7}}, "its token 7 is 'piece8' and not 'piece7'"),
        ({"vocab": unigram({"first": 0, **PIECES})}, "its token 0 is 'first' and not 'piece0'"),
        ({"vocab": dict(list(PIECES.items())[:600])}, "600 tokens and not 640"),
        ({"vocab": {}}, "0 tokens and not 640"),
        ({"vocab_size": 700}, "700 tokens and not 640"),
    ],
)
def test_another_vocabulary_is_refused(draft: dict[str, Any], says: str, tmp_path: Path) -> None:
    folder, model = write(tmp_path / "draft", **draft), write(tmp_path / "model", PIECES)
    with pytest.raises(ModelLoadError) as refused:
        open_draft(str(folder), model)
    assert str(refused.value) == (
        f"speculation.draft_model: draft has another vocabulary than model: {says}; choose a model of the same family"
    )


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "null",
        "{}",
        '{"model": 3}',
        '{"model": {"vocab": 3}}',
        '{"model": {"vocab": {"a": "b"}}}',
        "[" * 100000,
    ],
)
def test_a_tokenizer_that_is_none_is_refused(content: str, tmp_path: Path) -> None:
    folder, model = write(tmp_path / "draft", PIECES), write(tmp_path / "model", PIECES)
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(ModelLoadError, match=r"draft_model: .*tokenizer\.json cannot be read as a tokenizer"):
        open_draft(str(folder), model)


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    model = write(tmp_path / "model", PIECES)
    empty, unsized = tmp_path / "empty", write(tmp_path / "unsized")
    empty.mkdir()
    (unsized / "config.json").write_text('{"model_type": "llama"}')
    for name, says in (
        (str(empty), "has no config.json; is it a model folder?"),
        (str(model / "config.json"), "is a file; name the folder"),
        (str(tmp_path / "nowhere"), "does not exist"),
        (str(unsized), "has no tokenizer.json, and its config.json no vocab_size to compare"),
    ):
        with pytest.raises(ModelLoadError, match="speculation.draft_model: .*" + re.escape(says)):
            open_draft(name, model)


def test_a_model_of_the_hub_goes_by_its_id(tmp_path: Path) -> None:
    assert display_name(tmp_path / "models--owner--small-one" / "snapshots" / "0a1b") == "owner/small-one"
    assert display_name(tmp_path / "small") == "small"
