"""`pippin verify`: a model's files against the hub's record of them, or against a SHA256SUMS in the folder."""

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
    model: str = typer.Argument(pocket.MODEL_ID, metavar="MODEL", help="A model folder, or a hub id that was pulled."),
) -> None:
    """Compare a model's files with their published SHA-256. Ends with 1 where one is damaged, 3 where nobody says."""
    folder = _find(model)
    try:
        record = model_files.find_record(folder)
    except ModelLoadError as error:
        raise ConfigError(str(error)) from None
    if record is None:
        print(f"{folder}: there is no {model_files.MANIFEST} and no record of the hub to compare with")
        raise typer.Exit(_UNKNOWN)
    with shown("comparing") as report:
        damaged = model_files.compare(folder, record, report)
    for each in damaged:
        print(each)
    if damaged:
        print(f"{len(damaged)} of {len(record.digests)} files are not as in {record.basis}")
        raise typer.Exit(_DAMAGED)
    model_files.remember(folder, record)
    print(f"{folder}: {len(record.digests)} files are as in {record.basis}")


def _find(model: str) -> Path:
    """The model's folder, without asking the hub."""
    if pocket.is_meant(model):
        return pocket.folder()
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if not HUB_ID.fullmatch(model):
        raise ConfigError(f"there is no folder {model}; name a model folder, or a hub id such as owner/model")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(os.fspath(snapshot_download(model, local_files_only=True, allow_patterns=list(SMALL_FILES))))
    except LocalEntryNotFoundError:
        raise ConfigError(f"{model} is not in the download cache; fetch it: pippin pull {model}") from None
