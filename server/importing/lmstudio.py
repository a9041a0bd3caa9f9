"""Read LM Studio's folder of models: a folder per publisher, with a folder per model. Changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from server.importing.gguf_split import parts_of
from server.importing.problems import CannotImport

POINTER = ".lmstudio-home-pointer"
"""File in the user's folder with the path of LM Studio's folder, if that is not `.lmstudio`."""


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A model's folder, with either an MLX model, which is served as it is, or GGUF files."""

    name: str
    path: Path
    is_mlx: bool
    ggufs: tuple[Path, ...] = ()
    """First file of each GGUF model."""


def folder(home: Path | None = None) -> Path:
    """Return the folder of the models."""
    home = Path.home() if home is None else home
    try:
        named = (home / POINTER).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeError):
        named = ""
    usual = home / ".lmstudio" / "models"
    for found in (Path(named) / "models" if named else usual, usual, home / ".cache" / "lm-studio" / "models"):
        if found.is_dir():
            return found
    return usual


def list_models(root: Path) -> Iterator[LocalModel]:
    """Yield the models of a folder by name, in order."""
    for publisher in sorted(root.iterdir()) if root.is_dir() else ():
        for path in sorted(publisher.iterdir()) if publisher.is_dir() else ():
            found = look(path, f"{publisher.name}/{path.name}") if path.is_dir() else None
            if found is not None:
                yield found


def find(root: Path, name: str) -> LocalModel:
    """Return the model OWNER/MODEL; a third part names one of its GGUF files. Raises CannotImport."""
    parts = name.split("/")
    if len(parts) not in (2, 3) or any(part in ("", ".", "..") for part in parts):
        raise CannotImport(f"lmstudio:{name} is no name; one has the form lmstudio:OWNER/MODEL")
    path = root / parts[0] / parts[1]
    found = look(path, "/".join(parts[:2])) if path.is_dir() else None
    if found is None:
        known = ", ".join(each.name for each in list_models(root)) or "none"
        raise CannotImport(f"there is no {parts[0]}/{parts[1]} in {root}; there are: {known[:300]}")
    if len(parts) == 2:
        return found
    chosen = tuple(file for file in found.ggufs if file.name in (parts[2], f"{parts[2]}.gguf"))
    if not chosen:
        raise CannotImport(f"{path} has no file {parts[2]}; {files_of(found)}")
    return LocalModel(found.name, path, False, chosen)


def only_gguf(model: LocalModel) -> Path:
    """Return the GGUF file of a model. Raises CannotImport if there are several."""
    if len(model.ggufs) != 1:
        raise CannotImport(f"{model.path} has {len(model.ggufs)} models; name one of them: {files_of(model)}")
    return model.ggufs[0]


def files_of(model: LocalModel) -> str:
    """Return the names of the model's GGUF files, for users."""
    return ", ".join(file.name for file in model.ggufs)[:300] or "it has no GGUF files"


def look(path: Path, name: str) -> LocalModel | None:
    """Return the model in a folder; None if there is none. Image projector files are skipped."""
    if (path / "config.json").is_file() and any(path.glob("model*.safetensors")):
        return LocalModel(name, path, True)
    ggufs = [file for file in sorted(path.glob("*.gguf")) if file.is_file() and "mmproj" not in file.name.lower()]
    firsts: dict[Path, None] = {}
    for file in ggufs:
        try:
            firsts[parts_of(file)[0]] = None
        except CannotImport:  # a part of the set is missing
            firsts[file] = None
    return LocalModel(name, path, False, tuple(firsts)) if firsts else None
