"""Resolve the source of an import: a file, a folder, a Modelfile, a name in Ollama's or LM Studio's store."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mlx_backend.model.adapter_files import AdapterFiles
from mlx_backend.model.checkpoint import HUB_ID
from server.importing import lmstudio, ollama_store
from server.importing.adapter import find as find_adapter
from server.importing.entry import Entry, build
from server.importing.gguf_file import is_gguf
from server.importing.gguf_split import read_model
from server.importing.modelfile import MAX_BYTES, Instruction, parse
from server.importing.ollama_store import Blob
from server.importing.problems import CannotImport

OLLAMA, LMSTUDIO = "ollama:", "lmstudio:"
_HUBS = ("hf.co/", "huggingface.co/", "https://hf.co/", "https://huggingface.co/")


@dataclass(frozen=True, slots=True)
class Stores:
    """Folders of other programs' stores."""

    ollama: Path
    lmstudio: Path

    @classmethod
    def usual(cls) -> Stores:
        return cls(ollama_store.folder(), lmstudio.folder())


@dataclass(frozen=True, slots=True)
class Source:
    """A model and the values of its entry. Served as it is if `served` names it; otherwise `gguf` is imported."""

    name: str
    served: str | None = None
    """Folder or hub id of an MLX model, served as it is."""
    gguf: Path | None = None
    blob: Blob | None = None
    """The same file as a blob, checked against its name first."""
    folder: str = ""
    """Default name of the imported model's folder."""
    values: Mapping[str, Any] = field(default_factory=dict)
    """Values of the entry of `models:`, except its model."""
    adapter: AdapterFiles | None = None
    """Adapter that ADAPTER names; `values` name its folder."""
    template: Instruction | None = None
    """TEMPLATE of the Modelfile."""
    notes: tuple[str, ...] = ()


def find(text: str, stores: Stores) -> Source:
    """Return the source that a text names. Raises CannotImport."""
    if text.startswith(OLLAMA):
        name = text.removeprefix(OLLAMA)
        found = _in_ollama(name, stores)
        if found is None:
            known = ", ".join(each for each, _ in ollama_store.list_models(stores.ollama)) or "none"
            raise CannotImport(f"there is no {name} in {stores.ollama}; there are: {known[:300]}")
        return found
    if text.startswith(LMSTUDIO):
        return _of_folder(lmstudio.find(stores.lmstudio, text.removeprefix(LMSTUDIO)))
    path = Path(text).expanduser()
    found = _at(path)
    if found is not None:
        return found
    if path.is_file():
        return _modelfile(path, stores)
    raise CannotImport(
        f"there is no file or folder {text}; name a GGUF file, a Modelfile, ollama:NAME or lmstudio:OWNER/MODEL"
    )


def _at(path: Path) -> Source | None:
    """Return the model of a GGUF file or of a folder. Raises CannotImport for a folder without one."""
    if path.is_dir():
        local = lmstudio.look(path, slug(path.resolve().name))
        if local is None:
            raise CannotImport(f"{path} has neither an MLX model nor a GGUF file")
        return _of_folder(local)
    if path.is_file() and (is_gguf(path) or path.suffix.lower() == ".gguf"):
        name = slug(read_model(path).name)
        return Source(name, gguf=path, folder=name)
    return None


def _of_folder(local: lmstudio.LocalModel) -> Source:
    name = "/".join(map(slug, local.name.split("/")))
    if local.is_mlx:
        return Source(name, served=str(local.path.resolve()))
    return Source(name, gguf=lmstudio.only_gguf(local), folder=slug(name))


def _in_ollama(name: str, stores: Stores) -> Source | None:
    stored = ollama_store.find(stores.ollama, name)
    if stored is None:
        return None
    entry = build(stored.instructions())
    short = stored.name.removesuffix(f":{ollama_store.DEFAULT_TAG}")
    if entry.adapter is not None:
        raise CannotImport(f"ollama's {name} has an adapter in a GGUF file; adapters are read from folders alone")
    blob = stored.gguf
    notes = tuple(_without_lines(entry))
    return Source(
        short, gguf=blob.path, blob=blob, folder=slug(short), values=entry.values, template=entry.template, notes=notes
    )


def _without_lines(entry: Entry) -> list[str]:
    """Return notes on instructions that are in no file."""
    return [note.removeprefix("line 0: ") for note in entry.notes]


def _modelfile(path: Path, stores: Stores) -> Source:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise CannotImport(f"{path} is no GGUF file, and too long for a Modelfile")
        entry = build(parse(path.read_bytes().decode("utf-8")))
        base = _base(entry.source, path, stores)
        adapter = None if entry.adapter is None else _adapter(entry.adapter, path)
    except UnicodeDecodeError:
        raise CannotImport(f"{path} is neither a GGUF file nor the text of a Modelfile") from None
    except OSError as error:
        raise CannotImport(f"{path} cannot be read: {error.strerror or error}") from None
    except CannotImport as error:
        raise CannotImport(str(error) if str(error).startswith(str(path)) else f"{path}: {error}") from None
    defaults = {**base.values.get("defaults", {}), **entry.values.get("defaults", {})}
    values = {**base.values, **entry.values, **({"defaults": defaults} if defaults else {})}
    if adapter is not None:
        values |= {"adapters": {adapter.name: str(adapter.weights.parent.resolve())}, "adapter": adapter.name}
    is_named = path.name.lower() != "modelfile"
    name = slug(path.stem if is_named else path.resolve().parent.name)
    notes, template = (*base.notes, *entry.notes), entry.template or base.template
    return replace(base, name=name, values=values, adapter=adapter, template=template, notes=notes)


def _adapter(text: str, modelfile: Path) -> AdapterFiles:
    """Return the adapter that ADAPTER names, relative to the Modelfile. Raises CannotImport."""
    path = modelfile.parent / Path(text).expanduser()
    return find_adapter(slug(path.resolve().name).replace(":", "-"), path)


def _base(text: str, modelfile: Path, stores: Stores) -> Source:
    """Return the model that FROM names. Raises CannotImport."""
    path = modelfile.parent / Path(text).expanduser()
    if path.exists():
        if path.resolve() == modelfile.resolve():
            raise CannotImport("FROM names the Modelfile itself")
        found = _at(path)
        if found is None:
            raise CannotImport(f"FROM names {path}, which is neither a folder nor a GGUF file")
        return found
    named = text.removeprefix(OLLAMA)
    found = _in_ollama(named, stores)
    if found is not None:
        return found
    hub = text
    for prefix in _HUBS:
        hub = hub.removeprefix(prefix)
    if HUB_ID.fullmatch(hub):
        return Source(hub, served=hub)
    message = f"FROM names {text[:200]!r}, which is no folder, no GGUF file and no hub id"
    raise CannotImport(f"{message}, and which Ollama's store ({stores.ollama}) has not")


def slug(name: str) -> str:
    """Return a valid name for an entry of `models:`."""
    return re.sub(r"[^A-Za-z0-9_.:-]+", "-", name).strip("-._:") or "model"
