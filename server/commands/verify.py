"""`pippin verify`: compare a model's files with the hub's record, or with a SHA256SUMS in the folder."""

from __future__ import annotations

import os
from pathlib import Path

import typer

from mlx_backend.api.errors import ModelLoadError
from mlx_backend.model.checkpoint import HUB_ID, SMALL_FILES
from server import model_files, pocket
from server.commands.progress import shown
from server.config import ConfigError

_DAMAGED, _UNKNOWN = 1, 3


def verify(
    model: str = typer.Argument(
        pocket.MODEL_ID, metavar="MODEL", help="Model folder, or hub id of a downloaded model."
    ),
) -> None:
    """Verify a model's files by their published SHA-256. Exits with 1 if one is damaged, 3 if none is published."""
    folder = _find(model)
    try:
        record = model_files.find_record(folder)
    except ModelLoadError as error:
        raise ConfigError(str(error)) from None
    if record is None:
        print(f"{folder}: there is neither a {model_files.MANIFEST} nor a record of the hub to compare with")
        raise typer.Exit(_UNKNOWN)
    with shown("comparing") as report:
        damaged = model_files.compare(folder, record, report)
    for each in damaged:
        print(each)
    if damaged:
        print(f"{len(damaged)} of {len(record.digests)} files differ from {record.basis}")
        raise typer.Exit(_DAMAGED)
    model_files.remember(folder, record)
    print(f"{folder}: {len(record.digests)} files match {record.basis}")


def _find(model: str) -> Path:
    """Return the model's folder, without network access."""
    if pocket.is_meant(model):
        return pocket.folder()
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if not HUB_ID.fullmatch(model):
        raise ConfigError(f"folder {model} does not exist; name a model folder, or a hub id such as owner/model")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(os.fspath(snapshot_download(model, local_files_only=True, allow_patterns=list(SMALL_FILES))))
    except LocalEntryNotFoundError:
        raise ConfigError(f"{model} is not in the download cache; to download it: pippin pull {model}") from None
