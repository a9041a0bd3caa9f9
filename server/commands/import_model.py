"""`pippin import`: convert another program's model for Pippin, with an entry for the configuration."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from mlx_backend.api.interface import LoadProgress
from server.commands.progress import shown
from server.config import ConfigError
from server.importing.problems import CannotImport

if TYPE_CHECKING:
    from collections.abc import Callable

    from server.importing.from_gguf import Wishes
    from server.importing.sources import Source


def import_model(
    source: str | None = typer.Argument(
        None,
        metavar="SOURCE",
        help="A GGUF file, a Modelfile, ollama:NAME or lmstudio:OWNER/MODEL.",
        show_default=False,
    ),
    out: str | None = typer.Option(None, metavar="FOLDER", help="Where to; else a folder of the model's name here."),
    name: str | None = typer.Option(None, help="The model's name in the configuration; else its own."),
    write: str | None = typer.Option(None, metavar="FILE", help="Add the entry of `models:` to this configuration."),
    tokenizer: str | None = typer.Option(
        None, metavar="FOLDER", help="The original model's folder, for a tokenizer that cannot be made from the file."
    ),
    requantize: int | None = typer.Option(
        None, metavar="BITS", help="Quantize types that MLX cannot hold anew, at so many bits: 2, 3, 4, 5, 6 or 8."
    ),
    q6: int = typer.Option(
        8, metavar="BITS", help="Of what the file has as Q6_K: 8 bits, with next to no loss, or 6, smaller and worse."
    ),
    dtype: str | None = typer.Option(
        None, help="Of scales and activations: float16, bfloat16 or float32; else what suits the model."
    ),
    dry_run: bool = typer.Option(False, "--dry-run", help="Say what it would become, and end."),
    is_list: bool = typer.Option(False, "--list", help="List what Ollama and LM Studio have here, and end."),
) -> None:
    """Convert another program's model so that Pippin can serve it. The original file is not changed."""
    from server.importing.adapter import check, layers_of
    from server.importing.sources import Stores, find

    try:
        if is_list:
            _list(Stores.usual())
            return
        if source is None:
            raise CannotImport("say what to import: a GGUF file, a Modelfile, ollama:NAME or lmstudio:OWNER/MODEL")
        found = find(source, Stores.usual())
        if found.served is not None and found.adapter is not None:
            check(found.adapter, layers_of(Path(found.served)))
        if found.served is not None:
            for note in _template_notes(found, "has no effect: the model's own chat template is used"):
                print(note, file=sys.stderr)
        model = found.served or _import(found, out, _wishes(tokenizer, requantize, dtype, q6), dry_run)
        for note in found.notes:
            print(note, file=sys.stderr)
        _show(found, model, name or found.name, write, dry_run)
    except CannotImport as error:
        raise ConfigError(str(error)) from None


def _wishes(tokenizer: str | None, requantize: int | None, dtype: str | None, q6: int) -> Wishes:
    from server.importing.dtypes import NAMES
    from server.importing.from_gguf import Wishes

    chosen = next((each for each in NAMES if each == dtype), None)
    if dtype is not None and chosen is None:
        raise CannotImport(f"--dtype is one of {', '.join(NAMES)}, not {dtype!r}")
    return Wishes(requantize, chosen, None if tokenizer is None else Path(tokenizer).expanduser(), q6)


def _import(source: Source, out: str | None, wishes: Wishes, is_dry: bool) -> str:
    """Write the complete folder and return its path. Raises CannotImport."""
    from server.importing.adapter import check
    from server.importing.from_gguf import GGUFImport

    assert source.gguf is not None
    template = None if source.template is None else source.template.value
    found = GGUFImport(source.gguf, replace(wishes, template=template))
    if source.adapter is not None:
        check(source.adapter, found.layers)
    for line in (*found.describe(), *_template_notes(source, found.template_note)):
        print(line, file=sys.stderr)
    folder = found.folder(Path(out or source.folder).expanduser())
    if is_dry:
        return str(folder.path.resolve())
    if folder.is_complete:
        print(f"{folder.path} has it already", file=sys.stderr)
        return str(folder.path.resolve())
    if source.blob is not None:
        with shown("comparing with its SHA-256") as report:
            source.blob.verify(_counting(report, 0, source.blob.num_bytes))
    with shown(f"importing into {folder.path}") as report:
        folder.write(_counting(report, folder.num_done_bytes, found.contents.num_bytes))
    for kind, error in found.losses.items():
        print(f"{kind} was quantized anew: its values differ by {100 * error:.2g} % from the file's", file=sys.stderr)
    return str(folder.path.resolve())


def _template_notes(source: Source, what: str) -> list[str]:
    """Return a note on the outcome of TEMPLATE, with its line if it has one."""
    if source.template is None:
        return []
    line = f"line {source.template.line}: " if source.template.line else ""
    return [f"{line}TEMPLATE {what}"]


def _counting(report: Callable[[LoadProgress], None], done: int, total: int) -> Callable[[int], None]:
    def advance(num_bytes: int) -> None:
        nonlocal done
        done += num_bytes
        report(LoadProgress(done_bytes=done, total_bytes=total))

    return advance


def _show(source: Source, model: str, name: str, write: str | None, is_dry: bool) -> None:
    """Write the entry to a file, or print it if it sets more than the model."""
    from server.importing.config_entry import add_to, as_text

    values: dict[str, Any] = {"model": model, **source.values}
    if write is not None and not is_dry:
        file = Path(write).expanduser()
        add_to(file, name, values)
        print(f"serve it: pippin serve --config {file}")
    elif source.values:
        print(f"models:\n{as_text(name, values)}", end="")
    else:
        print(f"serve it: pippin serve {model}")


def _list(stores: Any) -> None:
    from server.importing import lmstudio, ollama_store
    from server.importing.from_gguf import size

    rows = []
    for name, stored in ollama_store.list_models(stores.ollama):
        shown_as = str(stored) if isinstance(stored, CannotImport) else size(stored.num_bytes)
        rows.append((f"ollama:{name}", shown_as))
    for local in lmstudio.list_models(stores.lmstudio):
        if local.is_mlx:
            rows.append((f"lmstudio:{local.name}", f"MLX, served as it is: pippin serve {local.path}"))
        else:
            rows += [(f"lmstudio:{local.name}/{file.name}", size(file.stat().st_size)) for file in local.ggufs]
    width = max((len(name) for name, _ in rows), default=0)
    for name, shown_as in rows:
        print(f"{name:<{width}}  {shown_as}")
    if not rows:
        print(f"there are no models in {stores.ollama} or {stores.lmstudio}")
