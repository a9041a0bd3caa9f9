"""Command line of `pippin serve` and `pippin config`: a flag for each declared field, combined with other sources."""

from __future__ import annotations

import argparse
import difflib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from server import pocket
from server.config import ConfigError, Field, Resolved, fields, resolve, sections

_MODEL_HELP = f"Same as --model. Default: {pocket.MODEL_ID!r}, the model that ships with Pippin."
_CONFIG_HELP = "YAML configuration file, or the name of a profile (`pippin plan --list`)."
_HELP = "Show this message and exit."


def resolve_arguments(arguments: Sequence[str]) -> Resolved:
    """Return the configuration by these arguments, the environment and a file. Raises ConfigError."""
    given = vars(_parser().parse_args(arguments))
    positional, file = given.pop("positional_model"), given.pop("config")
    flags: dict[str, str | None] = given
    if positional is not None:
        if flags["model"] not in (None, positional):
            raise ConfigError(f"two models are given, {positional!r} and --model {flags['model']!r}; name one")
        flags["model"] = positional
    return resolve(None if file is None else Path(file), os.environ, flags)


def asks_help(arguments: Sequence[str]) -> bool:
    return "--help" in arguments


class _Parser(argparse.ArgumentParser):
    """Parser that keeps every flag as text: `server.config` parses it like the other sources, with the same errors."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)

    def parse_args(self, args: Any = None, namespace: Any = None) -> argparse.Namespace:  # type: ignore[override]
        found: argparse.Namespace
        found, left = self.parse_known_args(args, namespace)
        for argument in left:
            if argument.startswith("-"):
                nearest = difflib.get_close_matches(argument, self._option_string_actions, n=1, cutoff=0.0)[0]
                raise ConfigError(f"unknown flag {argument}; did you mean {nearest}?")
            raise ConfigError(f"unexpected argument {argument!r}: the command takes one model")
        return found


def _parser() -> _Parser:
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("positional_model", nargs="?")
    parser.add_argument("--config")
    for declared in fields():
        names = [declared.flag, declared.short_flag] if declared.short_flag else [declared.flag]
        parser.add_argument(*names, dest=declared.key)
    return parser


# --- for people


def show_help(command: str, summary: str, own: Mapping[str, str]) -> None:
    """Print the usage of a command that takes these flags. `own`: its other flags with their help."""
    from rich.console import Console
    from rich.markup import escape
    from rich.padding import Padding

    console = Console(highlight=False)
    console.print(f"\n Usage: pippin {command} [OPTIONS] [MODEL]\n\n {summary}\n", markup=False)
    console.print(Padding(_table([("MODEL", "", _MODEL_HELP)]), (0, 0, 1, 1)))
    options = [("--config", "FILE", _CONFIG_HELP), *((flag, "", text) for flag, text in own.items())]
    options.append(("--help", "", _HELP))
    console.print(Padding(_table([*options, *_rows("")]), (0, 0, 1, 1)))
    for name, section in sections().items():
        console.print(f" [bold]{name}[/bold]: {escape(str(section.__doc__))}")
        console.print(Padding(_table(_rows(name)), (0, 0, 1, 1)))


def _rows(section: str) -> list[tuple[str, str, str]]:
    return [_row(declared) for declared in fields() if declared.section == section]


def _row(declared: Field) -> tuple[str, str, str]:
    default = "none" if declared.default is None else str(declared.default)
    names = ", ".join(filter(None, (declared.flag, declared.short_flag)))
    kind = "|".join(map(str, declared.choices)) or declared.type.__name__.upper()
    return names, kind, f"{declared.help} (default {default})"


def _table(rows: Sequence[tuple[str, str, str]]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    for flag, kind, text in rows:
        table.add_row(Text(flag, "cyan"), Text(kind, "yellow"), Text(text))
    return table
