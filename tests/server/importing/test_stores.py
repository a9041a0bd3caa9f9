"""Ollama's store and LM Studio's folder: names, what is listed, digests, and stores that are broken or hostile."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.importing import lmstudio, ollama_store, sources
from server.importing.entry import build
from server.importing.ollama_store import StoredModel, parts_of
from server.importing.problems import CannotImport
from tests.stores import add_to_ollama

LIBRARY = "registry.ollama.ai/library"


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("llama3.2", ("registry.ollama.ai", "library", "llama3.2", "latest")),
        ("llama3.2:3b", ("registry.ollama.ai", "library", "llama3.2", "3b")),
        ("me/mario:v1", ("registry.ollama.ai", "me", "mario", "v1")),
        ("hf.co/o/m-GGUF:Q4_K_M", ("hf.co", "o", "m-GGUF", "Q4_K_M")),
        ("localhost:5000/o/m", ("localhost:5000", "o", "m", "latest")),
    ],
)
def test_names(name: str, parts: Any) -> None:
    assert parts_of(name) == parts
    assert parts_of(ollama_store._short(parts)) == parts


@pytest.mark.parametrize(
    "name", ["", "a/b/c/d", "../../etc", "a/..", "..", "a:", ":a", "a b", "/a", "a/", "a\nb", ".", "a:..:b"]
)
def test_what_is_no_name_leaves_the_folder_alone(name: str) -> None:
    assert parts_of(name) is None


@given(st.text())
def test_no_name_leads_out_of_the_store(name: str) -> None:
    parts = parts_of(name)
    assert parts is None or not any(part in ("", ".", "..") or "/" in part or "\0" in part for part in parts)


def test_a_store_is_listed_and_its_models_say_what_a_modelfile_would(tmp_path: Path) -> None:
    layers = {
        "template": "{{ .Prompt }}",
        "system": "You are Mario.",
        "params": {"temperature": 0.5, "stop": ["a", "b"], "num_ctx": 4096, "num_gpu": 1},
        "messages": [{"role": "user", "content": "hi"}],
        "license": "MIT",
    }
    add_to_ollama(tmp_path, f"{LIBRARY}/mario/latest", b"GGUF1", **layers)
    add_to_ollama(tmp_path, "hf.co/o/m/q4", b"GGUF22")
    (tmp_path / "manifests" / "stray").write_text("")
    found = dict(ollama_store.list_models(tmp_path))
    assert list(found) == ["hf.co/o/m:q4", "mario:latest"]
    mario = ollama_store.find(tmp_path, "mario")
    assert mario is not None and mario == found["mario:latest"]
    assert mario.gguf.path.read_bytes() == b"GGUF1"
    entry = build(mario.instructions())
    assert entry.values == {
        "context": {"limit": 4096},
        "defaults": {
            "temperature": 0.5,
            "stop": ["a", "b"],
            "system": "You are Mario.",
            "messages": [{"role": "user", "content": "hi"}],
        },
    }
    assert len(entry.notes) == 1
    assert entry.template is not None and entry.template.value == "{{ .Prompt }}"
    assert ollama_store.find(tmp_path, "luigi") is None
    assert list(ollama_store.list_models(tmp_path / "none")) == []


def test_a_damaged_blob_is_noticed_by_its_name(tmp_path: Path) -> None:
    add_to_ollama(tmp_path, f"{LIBRARY}/a/latest", b"GGUF1", system="Be brief.")
    stored = ollama_store.find(tmp_path, "a")
    assert stored is not None
    stored.gguf.verify()
    for blob in stored.blobs:
        blob.path.write_bytes(b"other")
        with pytest.raises(CannotImport, match="is damaged: its SHA-256 is d9298a10d1b0735"):
            blob.verify()
    with pytest.raises(CannotImport, match="is damaged"):
        stored.instructions()


def manifest(root: Path, content: str) -> StoredModel | None:
    file = root / "manifests" / LIBRARY / "a" / "latest"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content)
    return ollama_store.find(root, "a")


def one_layer(digest: Any, kind: Any = "application/vnd.ollama.image.model") -> str:
    return json.dumps({"layers": [{"mediaType": kind, "digest": digest}]})


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "is no manifest of Ollama's"),
        ("[]", "is no manifest of Ollama's"),
        ('{"layers": [1]}', "is no manifest of Ollama's"),
        ("[" * 100_000, "is no manifest of Ollama's"),
        (one_layer("sha256:../../../etc/passwd"), "names the blob 'sha256:../../../etc/passwd', which is none"),
        (one_layer(7), "names the blob '7', which is none"),
        (one_layer("sha256:" + "0" * 64), "is not there, which"),
        (one_layer("sha256:" + "0" * 64, 7), "which is none"),
    ],
)
def test_broken_manifests(tmp_path: Path, content: str, says: str) -> None:
    with pytest.raises(CannotImport) as caught:
        manifest(tmp_path, content)
    assert says in str(caught.value) and "\n" not in str(caught.value)
    ((name, listed),) = ollama_store.list_models(tmp_path)
    assert name == "a:latest" and str(listed) == str(caught.value)


def test_what_is_stored_otherwise_is_refused(tmp_path: Path) -> None:
    add_to_ollama(tmp_path, f"{LIBRARY}/a/latest", None, tensor="x")
    add_to_ollama(tmp_path, f"{LIBRARY}/b/latest", None)
    add_to_ollama(tmp_path, f"{LIBRARY}/c/latest", b"GGUF1", adapter="x")
    add_to_ollama(tmp_path, f"{LIBRARY}/d/latest", b"GGUF1", params="[]", messages="1")
    stored = {name: listed for name, listed in ollama_store.list_models(tmp_path) if isinstance(listed, StoredModel)}
    for name, says in (
        ("a:latest", "is stored as single tensors of Ollama's own engine, which is not supported"),
        ("b:latest", "has 0 GGUF files; one is imported"),
        ("d:latest", "are no object"),
    ):
        with pytest.raises(CannotImport, match=says):
            build(stored[name].instructions())
    with pytest.raises(CannotImport, match="ollama's c has an adapter in a GGUF file"):
        sources.find("ollama:c", sources.Stores(tmp_path, tmp_path))


def test_the_folder_is_the_variable_s() -> None:
    assert ollama_store.folder({"OLLAMA_MODELS": "/models"}) == Path("/models")
    assert ollama_store.folder({}) == Path.home() / ".ollama" / "models"


def local(root: Path, name: str, *files: str) -> Path:
    folder = root / name
    folder.mkdir(parents=True)
    for file in files:
        (folder / file).write_bytes(b"GGUF")
    return folder


def test_lm_studio_s_folder_is_listed(tmp_path: Path) -> None:
    root = tmp_path / "models"
    local(root, "o/mlx", "config.json", "model.safetensors")
    local(root, "o/gguf", "a-Q4.gguf", "a-Q8.gguf", "mmproj-a.gguf")
    local(root, "o/split", "b-00001-of-00002.gguf", "b-00002-of-00002.gguf")
    local(root, "p/none", "readme.md")
    (root / ".internal").mkdir()
    found = {model.name: model for model in lmstudio.list_models(root)}
    assert list(found) == ["o/gguf", "o/mlx", "o/split"]
    assert found["o/mlx"].is_mlx
    assert [file.name for file in found["o/gguf"].ggufs] == ["a-Q4.gguf", "a-Q8.gguf"]
    assert lmstudio.only_gguf(found["o/split"]).name == "b-00001-of-00002.gguf"
    with pytest.raises(CannotImport, match=r"has 2 models; name one of them: a-Q4\.gguf, a-Q8\.gguf"):
        lmstudio.only_gguf(found["o/gguf"])
    assert lmstudio.only_gguf(lmstudio.find(root, "o/gguf/a-Q8")).name == "a-Q8.gguf"
    for name, says in (
        ("o/other", "there is no o/other in .*; there are: o/gguf, o/mlx, o/split"),
        ("o/gguf/c", r"has no file c; a-Q4\.gguf"),
        ("o", "is no name; one has the form"),
        ("o/..", "is no name"),
    ):
        with pytest.raises(CannotImport, match=says):
            lmstudio.find(root, name)
    assert list(lmstudio.list_models(tmp_path / "none")) == []


def test_lm_studio_may_keep_its_things_elsewhere(tmp_path: Path) -> None:
    assert lmstudio.folder(tmp_path) == tmp_path / ".lmstudio" / "models"
    (tmp_path / ".cache" / "lm-studio" / "models").mkdir(parents=True)
    assert lmstudio.folder(tmp_path) == tmp_path / ".cache" / "lm-studio" / "models"
    (tmp_path / "elsewhere" / "models").mkdir(parents=True)
    (tmp_path / ".lmstudio-home-pointer").write_text(f"{tmp_path / 'elsewhere'}\n")
    assert lmstudio.folder(tmp_path) == tmp_path / "elsewhere" / "models"
