"""`pippin keys add | list | revoke`: the file of API keys. A running server applies changes within a second.

Reads the configuration and prints; `server.security.keys` defines the file.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import typer

from mlx_backend.api.interface import PRIORITIES
from server.config import ConfigError, resolve
from server.security import keys

app = typer.Typer(
    help="Add, list and revoke API keys. A running server applies changes within a second.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)

File = typer.Option(None, "--file", metavar="FILE", help="Keys file. Default: security.keys_file.")
ConfigFile = typer.Option(None, "--config", metavar="FILE", help="YAML configuration file.")
Name = typer.Argument(metavar="NAME", help="Name of the key in the log.")
Class = typer.Option(
    None,
    "--priority",
    metavar=f"[{'|'.join(PRIORITIES)}]",
    help="Most urgent class that its requests may have. Default: any.",
)
_PER_MINUTE = "per minute, at most. Default: the configuration's limit."


@app.command()
def add(
    name: str = Name,
    requests_per_minute: int | None = typer.Option(None, min=1, help=f"Requests {_PER_MINUTE}"),
    tokens_per_minute: int | None = typer.Option(None, min=1, help=f"Prompt and output tokens {_PER_MINUTE}"),
    priority: str | None = Class,
    admin: bool = typer.Option(False, "--admin", help="Allow the key to load and unload models."),
    file: str | None = File,
    config: Path | None = ConfigFile,
) -> None:
    """Add a key and print it once: only its hash is stored."""
    path = _path(file, config)
    try:
        key = keys.add(
            path,
            name,
            is_admin=admin,
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
            priority=priority,
        )
    except keys.KeysError as error:
        raise ConfigError(str(error)) from None
    print(key)
    print(f"Added {name!r} to {path}. The key is shown only once; the file stores its hash.", file=sys.stderr)


@app.command("list")
def show(file: str | None = File, config: Path | None = ConfigFile) -> None:
    """List the keys with their rights and limits."""
    path = _path(file, config)
    try:
        found = keys.read_keys(path)
    except keys.KeysError as error:
        raise ConfigError(str(error)) from None
    for key in found:
        limits = {"requests": key.requests_per_minute, "tokens": key.tokens_per_minute}
        told = [f"{limit} {what} per minute" for what, limit in limits.items() if limit is not None]
        told += [f"class {key.priority}"] if key.priority != "live" else []
        print(f"{key.name}  {', '.join(['admin'] * key.is_admin + told)}".rstrip())
    if not found:
        print(f"no keys in {path}", file=sys.stderr)


@app.command()
def revoke(name: str = Name, file: str | None = File, config: Path | None = ConfigFile) -> None:
    """Remove a key from the file. New requests with it are refused; running ones continue."""
    path = _path(file, config)
    try:
        keys.revoke(path, name)
    except keys.KeysError as error:
        raise ConfigError(str(error)) from None
    print(f"revoked {name!r}", file=sys.stderr)


def _path(file: str | None, config: Path | None) -> Path:
    """Return the keys file. Raises ConfigError."""
    named = resolve(config, os.environ, {"security.keys_file": file}).config.security.keys_file
    if named is None:
        raise ConfigError("no keys file is set; use --file, or set security.keys_file")
    return Path(named).expanduser()
