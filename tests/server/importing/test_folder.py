"""Folders of imported models: served, whole or no model, resumed after an end at any point, and no other model's."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from server import model_files
from server.importing import dequantize
from server.importing.folder import Folder
from server.importing.from_gguf import GGUFImport, Wishes
from server.importing.problems import CannotImport
from server.text.tokenizer import load_tokenizer
from tests.gguf_models import write_gguf, write_original
from tests.gguf_writer import Raw, encode

pytestmark = pytest.mark.mlx
SHARD_BYTES = 20_000


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_original(tmp_path_factory.mktemp("original"), "llama")


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory, original: Path) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", original, "llama", "Q8_0")


def folder_of(gguf: Path, path: Path, shard_bytes: int = SHARD_BYTES, **wishes: Any) -> Folder:
    return Folder(path, GGUFImport(gguf, Wishes(**wishes)).contents, shard_bytes)


def content(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


def test_the_folder_is_a_model_with_checksums(tmp_path: Path, gguf: Path, original: Path) -> None:
    path = tmp_path / "out"
    digests = folder_of(gguf, path).write()
    names = {file.name for file in path.iterdir()}
    assert names == {*digests, "SHA256SUMS"} and not any(name.endswith((".part", ".journal")) for name in names)
    assert all(hashlib.sha256((path / name).read_bytes()).hexdigest() == digest for name, digest in digests.items())
    record = model_files.find_record(path)
    assert record is not None and model_files.compare(path, record, lambda _: None) == []
    index = json.loads((path / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 3
    mine, theirs = load_tokenizer(path), load_tokenizer(original)
    chat = [{"role": "user", "content": "hello <think>"}]
    assert mine.render_chat(chat, {}) == theirs.render_chat(chat, {})
    assert mine.encode("The quick 你好", add_special_tokens=True) == theirs.encode(
        "The quick 你好", add_special_tokens=True
    )
    assert mine.eos_ids >= theirs.eos_ids


class Killed(BaseException):
    pass


def kill_at(monkeypatch: pytest.MonkeyPatch, place: int) -> list[str]:
    """End the process, as it were, at the given one of the calls that change the disk; they are listed."""
    calls: list[str] = []

    def dying(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            calls.append(name)
            if len(calls) == place:
                raise Killed
            return None if name == "fsync" else work(*arguments)

        return call

    for name in ("pwrite", "replace", "fsync"):
        monkeypatch.setattr(os, name, dying(name, getattr(os, name)))
    return calls


def test_what_was_interrupted_goes_on_and_ends_in_the_same_bytes(
    tmp_path: Path, gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tmp_path / "whole"
    with monkeypatch.context() as patched:
        calls = kill_at(patched, 0)
        folder_of(gguf, whole).write()
    kept = set()
    for place in range(1, len(calls), len(calls) // 6):
        path = tmp_path / str(place)
        with monkeypatch.context() as patched:
            kill_at(patched, place)
            with pytest.raises(Killed):
                folder_of(gguf, path).write()
        assert not (path / "config.json").exists()
        found = folder_of(gguf, path)
        kept.add(found.num_done_bytes)
        found.write()
        assert content(path) == content(whole)
        assert folder_of(gguf, path).is_complete
    assert len(kept) > 2
    (path / "import.journal").write_text("left behind")
    assert folder_of(gguf, path).is_complete
    assert content(path) == content(whole)


def test_a_shard_that_was_damaged_meanwhile_is_written_again(
    tmp_path: Path, gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out"
    with monkeypatch.context() as patched:
        kill_at(patched, 60)
        with pytest.raises(Killed):
            folder_of(gguf, path).write()
    first = next(iter(sorted(path.glob("*.safetensors"))))
    first.write_bytes(first.read_bytes()[:-1] + b"?")
    found = folder_of(gguf, path)
    assert found.num_done_bytes == 0
    digests = found.write()
    assert hashlib.sha256(first.read_bytes()).hexdigest() == digests[first.name]


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, gguf: Path) -> None:
    path = tmp_path / "out"
    path.mkdir()
    (path / "notes.txt").write_text("mine")
    with pytest.raises(CannotImport, match="is there and holds something else; name another folder with --out"):
        folder_of(gguf, path)
    (path / "import.journal").write_text('{"identity": "x", "done": {}, "losses": {"errors": {}, "wholes": {}}}')
    with pytest.raises(CannotImport, match="has a part of another import"):
        folder_of(gguf, path)
    (path / "import.journal").write_text('{"identity": []')
    with pytest.raises(CannotImport, match="holds something else"):
        folder_of(gguf, path)
    with pytest.raises(CannotImport, match="is a file"):
        folder_of(gguf, path / "notes.txt")
    assert (path / "notes.txt").read_text() == "mine"


def test_the_same_file_with_other_wishes_is_another_import(tmp_path: Path, gguf: Path) -> None:
    path = tmp_path / "out"
    folder_of(gguf, path).write()
    with pytest.raises(CannotImport, match="holds something else"):
        folder_of(gguf, path, dtype="bfloat16")


def test_a_file_may_hold_the_original_s_tokenizer(tmp_path: Path, original: Path) -> None:
    own = (original / "tokenizer.json").read_text()

    def change(metadata: dict[str, Any], _: dict[str, Raw]) -> None:
        metadata |= {"tokenizer.ggml.pre": "whatever", "tokenizer.huggingface.json": own}

    folder_of(write_gguf(tmp_path / "a.gguf", original, "llama", "Q8_0", change), tmp_path / "out").write()
    assert (tmp_path / "out" / "tokenizer.json").read_text() == own


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def test_a_disk_that_is_full_is_noticed_first_and_on_the_way(
    tmp_path: Path, gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, 1000))
        with pytest.raises(CannotImport, match=r"has 0\.0 GB free; the model needs 0\.1 GB more"):
            folder_of(gguf, path).write()
    assert not path.exists()

    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full)
        with pytest.raises(CannotImport, match="cannot be written: No space left on device; what is there is taken up"):
            folder_of(gguf, path).write()
    assert [file.name for file in path.iterdir()] == ["import.journal"]
    folder_of(gguf, path).write()
    assert (path / "config.json").exists()


@pytest.mark.parametrize(
    ("kind", "block_bytes", "bits", "most"),
    [("Q4_K", 144, 4, 0.006), ("Q5_K", 176, 5, 0.006), ("Q6_K", 210, 8, 0.006), ("Q6_K", 210, 6, 0.025)],
)
def test_types_of_large_blocks_hold_the_same_values(
    tmp_path: Path, kind: str, block_bytes: int, bits: int, most: float
) -> None:
    import mlx.core as mx

    rows = np.random.default_rng(bits).integers(0, 256, (64, block_bytes), np.uint8)
    scales = [slice(208, 210)] if kind == "Q6_K" else [slice(0, 2), slice(2, 4)]
    for place in scales:
        rows[:, place] = np.array([0.001], np.float16).view(np.uint8)
    name, target = "blk.1.ffn_down.weight", "model.layers.1.mlp.down_proj"
    path = write_gguf(
        tmp_path / "a.gguf",
        write_original(tmp_path / "original", "llama", intermediate_size=256),
        "llama",
        "Q8_0",
        lambda _, tensors: tensors.update({name: Raw((64, 256), kind, rows.tobytes())}),
    )
    found = GGUFImport(path, Wishes(q6_bits=bits if kind == "Q6_K" else 8))
    found.folder(tmp_path / "out").write()
    assert (found.losses.get(kind, 0) > 0.01) == (bits == 6)
    arrays = mx.load(str(tmp_path / "out" / "model.safetensors"))
    parts = (arrays[f"{target}.{part}"] for part in ("weight", "scales", "biases"))
    values = np.array(mx.dequantize(*parts, group_size=32, bits=bits).astype(mx.float32))
    wanted = dequantize.values(kind, rows)
    assert np.linalg.norm(values - wanted) < most * np.linalg.norm(wanted)
    section = json.loads((tmp_path / "out" / "config.json").read_text())["quantization"]
    assert section.get(target, section)["bits"] == bits


def test_what_mlx_cannot_hold_is_refused_with_what_it_would_become(tmp_path: Path, original: Path) -> None:
    def change(_: dict[str, Any], tensors: dict[str, Raw]) -> None:
        for place in (0, 1):
            data = np.random.default_rng(place).integers(0, 256, (64 * 128 // 32, 18), np.uint8)
            data[:, :2] = np.array([0.01], np.float16).view(np.uint8)
            tensors[f"blk.{place}.ffn_down.weight"] = Raw((64, 128), "IQ4_NL", data.tobytes())

    path = write_gguf(tmp_path / "a.gguf", original, "llama", "Q8_0", change)
    with pytest.raises(CannotImport) as caught:
        GGUFImport(path)
    message = str(caught.value)
    assert (
        "has 2 tensors of type IQ4_NL, which MLX cannot hold: quantized anew, its 0.1 MB become 0.1 MB at 4" in message
    )
    assert "or at least 0.1 MB, at 2 bits and much worse" in message
    assert message.endswith("if that is wanted: --requantize 4")
    with pytest.raises(CannotImport, match="--requantize takes 2, 3, 4, 5, 6, 8 bits, not 7"):
        GGUFImport(path, Wishes(7))
    errors = {}
    for bits in (4, 8):
        found = GGUFImport(path, Wishes(bits))
        found.folder(tmp_path / str(bits)).write()
        errors[bits] = found.losses["IQ4_NL"]
        record = json.loads((tmp_path / str(bits) / "import.json").read_text())
        assert record["relative_errors"] == found.losses
    assert 0.001 < errors[8] < 0.01 < errors[4] < 0.2


@pytest.mark.parametrize(
    ("value", "dtype", "says"),
    [
        (np.nan, "float32", "has values that are no numbers; fetch it again"),
        (np.inf, "float16", "has values that are no numbers"),
        (70000.0, "float16", "has a value above 65504, the most of float16; import it with --dtype bfloat16"),
    ],
)
def test_numbers_that_are_none_are_not_served(
    tmp_path: Path, original: Path, value: float, dtype: Any, says: str
) -> None:
    def change(_: dict[str, Any], tensors: dict[str, Raw]) -> None:
        tensors["output_norm.weight"] = encode(np.full(64, value), "F32")

    path = write_gguf(tmp_path / "a.gguf", original, "llama", "Q8_0", change)
    with pytest.raises(CannotImport) as caught:
        folder_of(path, tmp_path / "out", dtype=dtype).write()
    assert "tensor 'output_norm.weight'" in str(caught.value) and says in str(caught.value)
    assert not (tmp_path / "out" / "config.json").exists()
    assert not list((tmp_path / "out").glob("*.part"))


def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path, gguf: Path) -> None:
    copy = tmp_path / "tiny.gguf"
    shutil.copy(gguf, copy)
    found = folder_of(copy, tmp_path / "out")
    os.truncate(copy, copy.stat().st_size - 5000)
    with pytest.raises(CannotImport, match="has become shorter while it was read"):
        found.write()
