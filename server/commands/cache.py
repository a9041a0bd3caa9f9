"""`pippin cache ls | clear | verify`: the prefix cache's folder, as tables or JSON.

Reads the configuration and prints tables; `mlx_backend.prefix_cache.folder` defines the files.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from server.config import ConfigError, resolve

if TYPE_CHECKING:
    from mlx_backend.prefix_cache.folder import Finding, ModelFolder

app = typer.Typer(help="List, clear or verify the prefix cache on disk.", no_args_is_help=True, rich_markup_mode="rich")

_SHORT_ID = 12

Dir = typer.Option(None, "--dir", metavar="FOLDER", help="Folder of the cache. Default: prefix_cache.dir.")
ConfigFile = typer.Option(None, "--config", metavar="FILE", help="YAML configuration file.")
AsJSON = typer.Option(False, "--json", help="Print JSON instead of a table.")


@app.command("ls")
def show(directory: str | None = Dir, config: Path | None = ConfigFile, as_json: bool = AsJSON) -> None:
    """List the cached models, most recently used first."""
    root = _root(directory, config)
    found = _models(root)
    if as_json:
        _print_json({"folder": str(root), "models": [_document(each) for each in found]})
    elif not found:
        print(f"no cached blocks in {_clean(str(root))}")
    else:
        _print_table(found)


@app.command()
def clear(
    model: str | None = typer.Argument(
        None, metavar="MODEL", help="Model name, or the beginning of its id. Default: all models."
    ),
    directory: str | None = Dir,
    config: Path | None = ConfigFile,
    force: bool = typer.Option(False, "--force", help="Clear even while a server uses the folder."),
) -> None:
    """Remove the cached blocks of one model or of all."""
    from mlx_backend.prefix_cache import folder

    root = _root(directory, config)
    found = _models(root)
    chosen = found if model is None else _choose(found, model)
    with _held(root, "use --force to clear it anyway", may_go_on=force) as is_held, _told(root):
        cleared = folder.clear(chosen, is_held=is_held)
    print(f"removed {cleared.num_blocks:,} blocks, {_gigabytes(cleared.num_bytes)}")
    if cleared.num_foreign:
        print(f"{cleared.num_foreign:,} other files do not belong to the prefix cache and were kept", file=sys.stderr)


@app.command()
def verify(
    directory: str | None = Dir,
    config: Path | None = ConfigFile,
    keep: bool = typer.Option(False, "--keep", help="List damaged blocks without removing them."),
    as_json: bool = AsJSON,
) -> None:
    """Verify every block and remove damaged ones. Exits with 1 if any block is damaged."""
    from mlx_backend.prefix_cache import folder

    root = _root(directory, config)
    num_removed, findings = 0, list[Any]()
    with _held(root, "use --keep to check without removing anything", may_go_on=keep) as is_held, _told(root):
        found = folder.models(root)
        for each in found:
            findings += folder.verify(each, is_held=is_held)
        if not keep:
            num_removed = folder.remove(findings)
    num_blocks = sum(each.num_blocks for each in found)
    if as_json:
        damaged = [{"file": str(each.path), "reason": each.reason} for each in findings]
        _print_json({"folder": str(root), "num_blocks": num_blocks, "damaged": damaged, "num_removed": num_removed})
    else:
        _print_findings(root, num_blocks, findings, num_removed)
    raise typer.Exit(1 if findings else 0)


# --- the folder


def _root(directory: str | None, file: Path | None) -> Path:
    """Return the existing folder of the cache. Raises ConfigError."""
    given = directory if directory is not None else resolve(file, os.environ, {}).config.prefix_cache.dir
    if not given:
        raise ConfigError("no cache folder is set; use --dir FOLDER, or set prefix_cache.dir")
    try:
        root = Path(given).expanduser()
        if root.is_dir():
            return root
        raise ConfigError(f"{root} {'is not a folder' if root.exists() else 'does not exist'}")
    except (OSError, ValueError, RuntimeError) as error:  # a name that is too long or has a NUL, an unknown user
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{given!r}: {getattr(error, 'strerror', None) or error}") from None


def _models(root: Path) -> list[ModelFolder]:
    from mlx_backend.prefix_cache import folder

    with _told(root):
        return folder.models(root)


@contextmanager
def _told(root: Path) -> Iterator[None]:
    """Turn an OSError into a ConfigError of one line."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{error.filename or root}: {error.strerror or error}") from None


@contextmanager
def _held(root: Path, advice: str, *, may_go_on: bool) -> Iterator[bool]:
    """Lock the folder and yield whether that worked. Raises ConfigError if it did not, unless `may_go_on`."""
    from mlx_backend.prefix_cache import folder

    with ExitStack() as stack:
        is_held = True
        try:
            stack.enter_context(folder.held(root))
        except OSError as error:
            if not may_go_on:
                reason = error.strerror or error
                if isinstance(error, folder.FolderInUse):
                    reason = f"another process uses it; stop that process, or {advice}"
                raise ConfigError(f"{root}: {reason}") from None
            is_held = False
        yield is_held


def _choose(found: Sequence[ModelFolder], name: str) -> list[ModelFolder]:
    """Return the models of this name, or the one with this beginning of its id. Raises ConfigError."""
    named = [each for each in found if each.model == name]
    if named:
        return named
    begun = [each for each in found if name and each.id.startswith(name)]
    if len(begun) > 1:
        raise ConfigError(f"{len(begun)} models have ids that begin with {name!r}; give more of the id")
    if not begun:
        known = ", ".join(sorted({_name(each) for each in found})) or "nothing"
        raise ConfigError(f"no cached model {name!r}; cached: {known}")
    return begun


# --- output


def _document(each: ModelFolder) -> dict[str, Any]:
    bits = each.kv_bits
    return {
        "id": each.id,
        "model": each.model,
        "kv_bits": None if bits is None else {"keys": bits[0], "values": bits[1]},
        "num_blocks": each.num_blocks,
        "num_tokens": each.num_tokens,
        "num_bytes": each.num_bytes,
        "num_unreadable": each.num_unreadable,
        "used_at": None
        if each.used_at is None
        else datetime.fromtimestamp(each.used_at, UTC).isoformat("T", "seconds"),
        "about": each.about,
    }


def _print_table(found: Sequence[ModelFolder]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("model", "id", "KV bits", box=None, pad_edge=False)
    for name in ("blocks", "tokens", "size"):
        table.add_column(name, justify="right")
    table.add_column("last used")
    for each in found:
        used = "" if each.used_at is None else datetime.fromtimestamp(each.used_at).strftime("%Y-%m-%d %H:%M")
        counts = (f"{each.num_blocks:,}", f"{each.num_tokens:,}", _gigabytes(each.num_bytes))
        table.add_row(_name(each), each.id[:_SHORT_ID], _bits(each), *counts, used)
    Console(markup=False, highlight=False).print(table)
    if num_unreadable := sum(each.num_unreadable for each in found):
        print(f"{num_unreadable:,} blocks cannot be read; run `pippin cache verify`", file=sys.stderr)


def _print_findings(root: Path, num_blocks: int, findings: Sequence[Finding], num_removed: int) -> None:
    for each in findings:
        print(_clean(f"{each.path.relative_to(root)}: {each.reason}"))
    whole = "all intact" if not findings else f"{len(findings):,} damaged, {num_removed:,} removed"
    print(f"{num_blocks:,} blocks in {_clean(str(root))}: {whole}")


def _name(each: ModelFolder) -> str:
    return "(unknown)" if each.model is None else _clean(each.model)


def _bits(each: ModelFolder) -> str:
    if each.kv_bits is None:
        return "?"
    keys, values = ("full" if bits is None else str(bits) for bits in each.kv_bits)
    return keys if keys == values else f"{keys}/{values}"


def _clean(text: str) -> str:
    """Replace control characters, which a terminal would obey: names come from files."""
    return "".join(character if character.isprintable() else "?" for character in text)


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.2f} MB"


def _print_json(document: Any) -> None:
    import json

    print(json.dumps(document, indent=2))
