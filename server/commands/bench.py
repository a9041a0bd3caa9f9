"""`pippin bench`: measure the speed of one server, or of two in turn. Options and exit codes."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from server.commands.chat import DEFAULT_URL
from server.config import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

Url = typer.Argument(DEFAULT_URL, metavar="URL", help="Server: Pippin, or another with OpenAI's API.")
Beside = typer.Option(
    None, metavar="URL", help="Second server, measured alternately with the first.", show_default=False
)
Prompt = typer.Option("256,1024,4096", help="Prompt lengths, tokens, comma-separated.")
Concurrency = typer.Option("1,4,8", help="Numbers of concurrent requests, comma-separated.")
Out = typer.Option(64, min=2, help="Tokens per answer.")
Rounds = typer.Option(3, min=1, help="Measurements of each cell; medians are shown.")
Model = typer.Option(None, help="Model. Default: the first one served.", show_default=False)
BesideModel = typer.Option(None, help="The same for the second server.", show_default=False)
Key = typer.Option(None, help="API key, or @FILE with the key.", show_default=False)
BesideKey = typer.Option(None, help="The same for the second server.", show_default=False)
Json = typer.Option(None, "--json", metavar="FILE", help="JSON file for all measurements; - prints only JSON.")
Plot = typer.Option(None, metavar="FILE", help="PNG or SVG file for a plot.", show_default=False)


def bench(
    url: str = Url,
    beside: str | None = Beside,
    prompt: str = Prompt,
    concurrency: str = Concurrency,
    out: int = Out,
    rounds: int = Rounds,
    model: str | None = Model,
    beside_model: str | None = BesideModel,
    key: str | None = Key,
    beside_key: str | None = BesideKey,
    json_file: str | None = Json,
    plot: Path | None = Plot,
) -> None:
    """Measure time to first token and tokens per second, by prompt length and concurrency.

    Prompts are random words, so that no prefix cache applies. Run nothing else meanwhile.
    """
    from server.client import bench_report
    from server.client.bench import BenchError, Grid, Target, measure
    from server.client.wire import read_key

    grid = Grid(_numbers("--prompt", prompt), _numbers("--concurrency", concurrency), out, rounds)
    if plot is not None and importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("--plot needs matplotlib; install it, or install Pippin with the extra `plots`")
    try:
        targets = [Target(url, model, read_key(key))]
        if beside is not None:
            targets.append(Target(beside, beside_model, read_key(beside_key)))
        subjects = asyncio.run(measure(targets, grid, _say))
    except (BenchError, OSError, ValueError) as error:
        print(f"pippin: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    if json_file == "-":
        print(json.dumps(bench_report.build_document(subjects, grid), indent=1))
    else:
        _print(bench_report.build_table(subjects), bench_report.notes(subjects, grid))
    try:
        if json_file not in (None, "-"):
            document = bench_report.build_document(subjects, grid)
            Path(str(json_file)).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        if plot is not None:
            bench_report.draw(subjects, grid, plot)
    except (OSError, ValueError) as error:
        raise ConfigError(str(error)) from None
    if not any(record.is_answered for subject in subjects for cell in subject.cells for record in cell.records):
        raise typer.Exit(1)


def _numbers(name: str, text: str) -> list[int]:
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise ConfigError(f"{name} {text!r} must be comma-separated whole numbers from 1")
    return found


def _print(table: Table, lines: Iterable[str]) -> None:
    from rich.console import Console

    console = Console(highlight=False) if sys.stdout.isatty() else Console(width=160, highlight=False)
    console.print(table)
    for line in lines:
        console.print(line, markup=False)


def _say(text: str) -> None:
    print(text, file=sys.stderr)
