"""`pippin import`: a GGUF file into a folder that is served here, with what it loses said first."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from mlx_backend.api.interface import LoadProgress
from server.commands.progress import shown
from server.config import ConfigError
from server.importing.problems import CannotImport

if TYPE_CHECKING:
    from server.importing.folder import Folder


def import_model(
    source: str = typer.Argument(..., metavar="SOURCE", help="A GGUF file, or any part of one that is split."),
    out: str | None = typer.Option(None, metavar="FOLDER", help="Where to; else a folder of the model's name here."),
    tokenizer: str | None = typer.Option(
        None, metavar="FOLDER", help="The original model's folder, for a tokenizer that cannot be made from the file."
    ),
    requantize: int | None = typer.Option(
        None, metavar="BITS", help="Quantize types that MLX cannot hold anew, at so many bits: 2, 3, 4, 5, 6 or 8."
    ),
    dtype: str | None = typer.Option(
        None, help="Of scales and activations: float16, bfloat16 or float32; else what suits the model."
    ),
    dry_run: bool = typer.Option(False, "--dry-run", help="Say what it would become, and end."),
) -> None:
    """Make a model of another program into one that is served here."""
    try:
        _import_gguf(Path(source).expanduser(), out, tokenizer, requantize, dtype, dry_run)
    except CannotImport as error:
        raise ConfigError(str(error)) from None


def _import_gguf(
    path: Path, out: str | None, tokenizer: str | None, requantize: int | None, dtype: str | None, dry_run: bool
) -> Path:
    """The folder, whole. Raises CannotImport."""
    from server.importing.dtypes import NAMES
    from server.importing.from_gguf import GGUFImport, Wishes

    chosen = next((name for name in NAMES if name == dtype), None)
    if dtype is not None and chosen is None:
        raise CannotImport(f"--dtype is one of {', '.join(NAMES)}, not {dtype!r}")
    found = GGUFImport(path, Wishes(requantize, chosen, None if tokenizer is None else Path(tokenizer).expanduser()))
    for line in found.describe():
        print(line)
    folder = found.folder(Path(out or found.model.name).expanduser())
    if dry_run:
        return folder.path
    if folder.is_complete:
        print(f"{folder.path} has it already")
    else:
        _write(found.contents.num_bytes, folder)
        for kind, error in found.losses.items():
            print(f"{kind} was quantized anew: its values differ by {100 * error:.2g} % from the file's")
    print(f"serve it: pippin serve {folder.path}")
    return folder.path


def _write(total: int, folder: Folder) -> None:
    done = folder.num_done_bytes
    with shown(f"importing into {folder.path}") as report:

        def advance(num_bytes: int) -> None:
            nonlocal done
            done += num_bytes
            report(LoadProgress(done_bytes=done, total_bytes=total))

        folder.write(advance)
