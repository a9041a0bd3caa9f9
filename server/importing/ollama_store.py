"""Read Ollama's store of models: manifests by name, and blobs named by their SHA-256. Changes nothing."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.importing.modelfile import Instruction
from server.importing.problems import CannotImport
from server.importing.safetensors_file import Progress, digest_of

DEFAULT_HOST, DEFAULT_NAMESPACE, DEFAULT_TAG = "registry.ollama.ai", "library", "latest"
VARIABLE = "OLLAMA_MODELS"
_KINDS = "application/vnd.ollama.image."
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}(:[0-9]{1,5})?")
_MAX_MANIFEST_BYTES = 1 << 20
_MAX_TEXT_BYTES = 4 << 20
_MAX_LISTED = 10_000


@dataclass(frozen=True, slots=True)
class Blob:
    """File of the store, named by its SHA-256."""

    kind: str
    path: Path
    digest: str
    num_bytes: int

    def verify(self, done: Progress = lambda _: None) -> None:
        """Check the file against its name. Raises CannotImport."""
        try:
            found = digest_of(self.path, done)
        except OSError as error:
            raise CannotImport(f"{self.path} cannot be read: {error.strerror or error}") from None
        if found != self.digest:
            raise CannotImport(f"{self.path} is damaged: its SHA-256 is {found}; pull the model again")

    def text(self) -> str:
        """Return the content of a small file, checked against its name. Raises CannotImport."""
        if self.num_bytes > _MAX_TEXT_BYTES:
            raise CannotImport(f"{self.path} is longer than {_MAX_TEXT_BYTES >> 20} MiB")
        self.verify()
        return self.path.read_text(encoding="utf-8", errors="replace")


@dataclass(frozen=True, slots=True)
class StoredModel:
    """One model, as its manifest describes it."""

    name: str
    blobs: tuple[Blob, ...]

    @property
    def num_bytes(self) -> int:
        return sum(blob.num_bytes for blob in self.blobs)

    def of_kind(self, kind: str) -> list[Blob]:
        return [blob for blob in self.blobs if blob.kind == kind]

    @property
    def gguf(self) -> Blob:
        """The model's GGUF file. Raises CannotImport if it has none or several."""
        found = self.of_kind("model")
        if self.of_kind("tensor") and not found:
            raise CannotImport(
                f"ollama's {self.name} is stored as single tensors of Ollama's own engine, which is not supported: "
                "they have no published layout; pull a tag of it that is a GGUF file, or an MLX model from the hub"
            )
        if len(found) != 1:
            raise CannotImport(f"ollama's {self.name} has {len(found)} GGUF files; one is imported")
        return found[0]

    def instructions(self) -> list[Instruction]:
        """Return the instructions that its Modelfile would have. Raises CannotImport."""
        found = [Instruction(0, "from", "", str(self.gguf.path))]
        found += [Instruction(0, "adapter", "", str(blob.path)) for blob in self.of_kind("adapter")]
        for kind in ("template", "system"):
            found += [Instruction(0, kind, "", text) for blob in self.of_kind(kind) if (text := blob.text())]
        for blob in self.of_kind("params"):
            found += _parameters(_json(blob))
        for blob in self.of_kind("messages"):
            found += _messages(_json(blob), blob)
        return found


def folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the folder of the store."""
    named = environ.get(VARIABLE)
    return Path(named).expanduser() if named else Path.home() / ".ollama" / "models"


def list_models(root: Path) -> Iterator[tuple[str, StoredModel | CannotImport]]:
    """Yield the models of a store by name, in order; for one that cannot be read, the error."""
    manifests = root / "manifests"
    for number, file in enumerate(sorted(path for path in manifests.rglob("*") if path.is_file())):
        parts = file.relative_to(manifests).parts
        if number >= _MAX_LISTED:
            return
        if len(parts) != 4 or not all(map(_PART.fullmatch, parts)):
            continue
        try:
            yield _short(parts), _read(root, file, _short(parts))
        except CannotImport as error:
            yield _short(parts), error


def find(root: Path, name: str) -> StoredModel | None:
    """Return the model of a name such as llama3.2, llama3.2:3b or owner/model:tag; None if missing.

    Raises CannotImport if it cannot be read.
    """
    parts = parts_of(name)
    if parts is None:
        return None
    file = root.joinpath("manifests", *parts)
    return _read(root, file, _short(parts)) if file.is_file() else None


def parts_of(name: str) -> tuple[str, str, str, str] | None:
    """Return (host, namespace, name, tag) of a name; None if it is not a model's name."""
    path, _, tag = name.rpartition(":") if ":" in name.rpartition("/")[2] else (name, "", DEFAULT_TAG)
    parts = path.removeprefix("https://").split("/")
    if not 1 <= len(parts) <= 3:
        return None
    host, namespace, model = [DEFAULT_HOST, DEFAULT_NAMESPACE, ""][: 3 - len(parts)] + parts
    found = (host, namespace, model, tag)
    return found if all(map(_PART.fullmatch, found)) else None


def _short(parts: tuple[str, ...]) -> str:
    """Return the name as Ollama shows it."""
    host, namespace, name, tag = parts
    known = [part for part, usual in ((host, DEFAULT_HOST), (namespace, DEFAULT_NAMESPACE)) if part != usual]
    if host != DEFAULT_HOST:
        known = [host, namespace]
    return "/".join([*known, f"{name}:{tag}"])


def _read(root: Path, file: Path, name: str) -> StoredModel:
    try:
        if file.stat().st_size > _MAX_MANIFEST_BYTES:
            raise ValueError("it is too long")
        manifest = json.loads(file.read_bytes())
        layers = [(each["mediaType"], each["digest"]) for each in manifest["layers"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CannotImport(f"{file} is no manifest of Ollama's ({str(error)[:60]})") from None
    return StoredModel(name, tuple(_blob(root, kind, digest, file) for kind, digest in layers))


def _blob(root: Path, kind: Any, digest: Any, manifest: Path) -> Blob:
    found = _DIGEST.fullmatch(digest) if isinstance(digest, str) else None
    if found is None or not isinstance(kind, str):
        raise CannotImport(f"{manifest} names the blob {str(digest)[:80]!r}, which is none")
    path = root / "blobs" / f"sha256-{found[1]}"
    try:
        size = path.stat().st_size
    except OSError:
        raise CannotImport(f"{path} is not there, which {manifest} names; pull the model again") from None
    return Blob(kind.removeprefix(_KINDS), path, found[1], size)


def _json(blob: Blob) -> Any:
    try:
        return json.loads(blob.text())
    except (ValueError, RecursionError):
        raise CannotImport(f"{blob.path} cannot be read as JSON") from None


def _parameters(found: Any) -> Iterator[Instruction]:
    if not isinstance(found, dict):
        raise CannotImport("the parameters of ollama's model are no object")
    for name, value in found.items():
        for each in value if isinstance(value, list) else [value]:
            yield Instruction(0, "parameter", str(name), str(each))


def _messages(found: Any, blob: Blob) -> Iterator[Instruction]:
    for message in found if isinstance(found, list) else [None]:
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise CannotImport(f"{blob.path} has a message that is none")
        yield Instruction(0, "message", str(message.get("role")), message["content"])
