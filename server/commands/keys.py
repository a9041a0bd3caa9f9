"""`pippin keys add | list | revoke`: the file of API keys. A running server notices a change within a second.

Knows the configuration and what a person is told. What the file is is known to `server.security.keys`.
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
    help="Make, list and revoke API keys. A server that runs notices within a second.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)

File = typer.Option(None, "--file", metavar="FILE", help="The keys file; else security.keys_file of the configuration.")
ConfigFile = typer.Option(None, "--config", metavar="FILE", help="YAML file of settings.")
Name = typer.Argument(metavar="NAME", help="What the key is called in the log.")
Class = typer.Option(
    None,
    "--priority",
    metavar=f"[{'|'.join(PRIORITIES)}]",
    help="The most urgent class that its requests may be of; else any.",
)
_PER_MINUTE = "a minute, at most; else the configuration's."


@app.command()
def add(
    name: str = Name,
    requests_per_minute: int | None = typer.Option(None, min=1, help=f"Requests {_PER_MINUTE}"),
    tokens_per_minute: int | None = typer.Option(None, min=1, help=f"Tokens of prompts and answers {_PER_MINUTE}"),
    priority: str | None = Class,
    admin: bool = typer.Option(False, "--admin", help="It may load and unload models."),
    file: str | None = File,
    config: Path | None = ConfigFile,
) -> None:
    """Make a key and print it, this once: only its hash is kept."""
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
    print(f"Its hash is in {path} as {name!r}; the key itself is shown this once.", file=sys.stderr)


@app.command("list")
def show(file: str | None = File, config: Path | None = ConfigFile) -> None:
    """List the names of the keys, what they may and their limits."""
    path = _path(file, config)
    try:
        found = keys.read_keys(path)
    except keys.KeysError as error:
        raise ConfigError(str(error)) from None
    for key in found:
        limits = {"requests": key.requests_per_minute, "tokens": key.tokens_per_minute}
        told = [f"{limit} {what} a minute" for what, limit in limits.items() if limit is not None]
        told += [f"class {key.priority}"] if key.priority != "live" else []
        print(f"{key.name}  {', '.join(['admin'] * key.is_admin + told)}".rstrip())
    if not found:
        print(f"no keys in {path}", file=sys.stderr)


@app.command()
def revoke(name: str = Name, file: str | None = File, config: Path | None = ConfigFile) -> None:
    """Take a key out of the file. Requests that are being answered go on; no new one is let in."""
    path = _path(file, config)
    try:
        keys.revoke(path, name)
    except keys.KeysError as error:
        raise ConfigError(str(error)) from None
    print(f"{name!r} is no key any more", file=sys.stderr)


def _path(file: str | None, config: Path | None) -> Path:
    """Where the keys are. Raises ConfigError."""
    named = resolve(config, os.environ, {"security.keys_file": file}).config.security.keys_file
    if named is None:
        raise ConfigError("no keys file: name one with --file, or set security.keys_file")
    return Path(named).expanduser()
