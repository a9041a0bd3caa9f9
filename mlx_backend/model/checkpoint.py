"""A model folder, checked before anything heavy is imported: its files, whether they are whole, its context length.

No MLX. Every problem is a ModelLoadError of one line with the fault and the remedy.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from glob import escape
from pathlib import Path
from typing import Any

from mlx_backend.api.errors import ModelLoadError
from mlx_backend.model.context_length import context_length as context_length
from mlx_backend.model.weight_files import INDEX as INDEX
from mlx_backend.model.weight_files import IncompleteWeights, WeightFiles, choose, find_weights, read_index

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
SMALL_FILES = ("*.json", "*.jsonl", "*.jinja", "*.txt", "*.model", "*.tiktoken")
"""Patterns of the files that are downloaded beside weights: no Python, since none of it would be run."""
_MAX_HEADER_BYTES = 100_000_000
"""The safetensors format's own bound."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A folder with complete files."""

    path: Path
    config: Mapping[str, Any]
    weight_files: tuple[Path, ...]
    notes: tuple[str, ...] = ()
    """Harmless faults of the files, in words."""

    @property
    def context_length(self) -> int:
        """The model's own context length, tokens."""
        return context_length(self.config)


def find_model(name: str) -> Path:
    """Return the folder of a model: a path, or a hub id; missing files are downloaded.

    Raises ModelLoadError.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise ModelLoadError(f"{name} is a file; name the folder that holds config.json and the weights")
    if not HUB_ID.fullmatch(name):
        raise ModelLoadError(f"folder {name} does not exist; name a model folder, or a hub id such as owner/model")
    return _download(name)


def open_checkpoint(path: Path) -> Checkpoint:
    """Check config.json and every weight file's header against its size. Raises ModelLoadError."""
    config = read_config(path / "config.json")
    found = _choose_weights(path)
    files = tuple(path / name for name in found.names)
    for file in files:
        read_header(file)
    return Checkpoint(path, config, files, found.notes)


def read_config(file: Path) -> Mapping[str, Any]:
    """Return a model's config.json. Raises ModelLoadError."""
    if not file.is_file():
        raise ModelLoadError(f"{file.parent} has no config.json; is it a model folder?")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{file} cannot be read as a config.json ({error}); download it again") from error
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise ModelLoadError(f"{file} names no model_type; is it the config.json of a language model?")
    return config


def _choose_weights(path: Path) -> WeightFiles:
    try:
        return find_weights(path)
    except (OSError, UnicodeError) as error:
        raise ModelLoadError(f"{path / INDEX} cannot be read ({error}); download the model again") from error
    except IncompleteWeights as error:
        has_any = any(path.glob("model*.safetensors*"))
        advice = "download the model again" if has_any else "convert the model with mlx_lm.convert first"
        raise ModelLoadError(f"{path} {error}; {advice}") from error


def read_header(file: Path) -> dict[str, Mapping[str, Any]]:
    """Return the tensors of a safetensors file by name, each with its `dtype` and `shape`. Raises ModelLoadError.

    8 bytes little-endian length, a JSON header of that length, then the tensors' bytes, none of which may be missing.
    """
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 2 <= length <= min(_MAX_HEADER_BYTES, size - 8):
                raise ValueError("its header is invalid")
            header = json.loads(stream.read(length))
        tensors = {name: tensor for name, tensor in header.items() if name != "__metadata__"}
        end = max((tensor["data_offsets"][1] for tensor in tensors.values()), default=0)
        expected = 8 + length + int(end)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise ModelLoadError(f"{file} is not a readable safetensors file ({error}); download it again") from error
    if size < expected:
        missing = math.ceil((expected - size) / 1024)
        raise ModelLoadError(f"{file} is truncated: {missing} of {expected // 1024} KiB are missing; download it again")
    return tensors


def belonging(names: Collection[str], index: str | None) -> list[str]:
    """Return the files to fetch from a repository: the weights that `weight_files` chooses, and the small files.

    `index`: the index's text, if there is one. Raises ModelLoadError if no weights are complete.
    """
    try:
        weights = choose([name for name in names if name.endswith(".safetensors")], index).names
    except IncompleteWeights as error:
        raise ModelLoadError(f"{error}; use the model in MLX's format, or convert it") from error
    return [name for name in names if name in weights or is_small(name)]


def is_needed(folder: Path, name: str) -> bool:
    """Return whether a file belongs to the model in a folder, present or not."""
    if not name.endswith(".safetensors"):
        return is_small(name)
    try:
        index = (folder / INDEX).read_text(encoding="utf-8")
        return name in read_index(index)
    except (OSError, ValueError):
        return fnmatchcase(name, "model*.safetensors")


def is_small(name: str) -> bool:
    """Return whether it is one of a model's files beside its weights."""
    return any(fnmatchcase(name, pattern) for pattern in SMALL_FILES)


def _download(name: str) -> Path:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        folder = Path(snapshot_download(name, allow_patterns=list(SMALL_FILES)))
        try:
            names = HfApi().list_repo_files(name, revision=folder.name)
        except (OfflineModeIsEnabled, HfHubHTTPError, OSError):
            return folder  # the local files were fetched before
        index = folder / INDEX
        wanted = belonging(names, index.read_text(encoding="utf-8") if index.is_file() else None)
        return Path(snapshot_download(name, revision=folder.name, allow_patterns=[escape(each) for each in wanted]))
    except ModelLoadError as error:
        raise ModelLoadError(f"{name} {error}") from error
    except LocalEntryNotFoundError as error:
        raise ModelLoadError(
            f"{name} is neither a local folder nor in the download cache, and the hub is unreachable"
        ) from error
    except (HfHubHTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelLoadError(f"{name} is not a local folder and cannot be downloaded: {reason}") from error
