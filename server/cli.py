"""The command line: `serve`, `plan`, `config`, `version`, and a command for each module of `server/commands`.

The flags of `serve` and `config` come from the declared fields (`serve_flags`). Each command imports its heavy
dependencies itself, so that `pippin --help` answers at once.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from mlx_backend.api.interface import SimulateConfig
from server import __version__, pocket, serve_flags
from server.commands import (
    acceptance,
    batch,
    bench,
    cache,
    chat,
    compare,
    convert,
    doctor,
    import_model,
    install_service,
    join,
    keys,
    launch,
    ps,
    pull,
    verify,
)
from server.config import Config, ConfigError, value_of

app = typer.Typer(
    name="pippin",
    help="LLM inference server on MLX with an OpenAI-compatible HTTP API.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.command()(chat.chat)
app.command()(bench.bench)
app.command()(launch.launch)
app.command()(ps.ps)
app.command()(join.join)
app.command()(pull.pull)
app.command()(convert.convert)
app.command()(compare.compare)
app.command()(verify.verify)
app.command()(acceptance.acceptance)
app.command("import")(import_model.import_model)
app.add_typer(cache.app, name="cache")
app.add_typer(keys.app, name="keys")
batch.add_to(app, lambda arguments: _parse_serve(arguments))
install_service.add_to(app, lambda arguments: _parse_serve(arguments))
doctor.add_to(app, lambda arguments: _parse_serve(arguments))


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code; print one line and exit with 2 for an invalid configuration."""
    try:
        app(args=argv, prog_name="pippin")
    except ConfigError as error:
        print(f"pippin: {error}", file=sys.stderr)
        sys.exit(2)


def _parse_serve(arguments: Sequence[str]) -> Config:
    """Return the configuration of `pippin serve` with these arguments. Raises ConfigError."""
    return serve_flags.resolve_arguments(arguments).config


# --- commands


_PASSED_ON = {"ignore_unknown_options": True, "help_option_names": []}
"""Settings of commands that use the flags of `server.serve_flags`: they receive all flags unparsed."""
_Arguments = typer.Argument(None, metavar="[OPTIONS] [MODEL]", show_default=False)


@app.command(context_settings=_PASSED_ON)
def serve(arguments: list[str] | None = _Arguments) -> None:
    """Serve a model over HTTP."""
    if serve_flags.asks_help(arguments or []):
        serve_flags.show_help("serve", str(serve.__doc__), {})
        return
    resolved = serve_flags.resolve_arguments(arguments or [])
    config = resolved.config
    if config.simulate != SimulateConfig():
        from server import simulation

        simulation.check(config)
    if config.backend == "mlx" and config.model is None and not config.models and not pocket.is_here():
        raise ConfigError(
            "no model is set; run `pippin serve MODEL` with a folder or hub id of an MLX model, or use --backend mock"
        )
    gc.disable()  # imports create no garbage, and looking for it takes a tenth of a start
    from server.run import serve as run

    gc.enable()
    raise typer.Exit(run(config, lambda: resolved.again().config, origins=resolved.origins))


@app.command("config", context_settings=_PASSED_ON)
def show_config(
    arguments: list[str] | None = _Arguments,
    as_json: bool = typer.Option(False, "--json", help="Print JSON instead of a table."),
) -> None:
    """Print the resolved settings and the source of each."""
    if serve_flags.asks_help(arguments or []):
        serve_flags.show_help("config", str(show_config.__doc__), {"--json": "Print JSON instead of a table."})
        return
    resolved = serve_flags.resolve_arguments(arguments or [])
    rows = {key: (value_of(resolved.config, key), origin) for key, origin in resolved.origins.items()}
    if as_json:
        _print_json(rows)
    else:
        _print_table(rows)


@app.command()
def plan(
    model: str = typer.Argument(
        pocket.MODEL_ID,
        metavar="MODEL",
        help="A model folder, a hub id, a config.json, a profile (see --list), or a name such as deepseek-r1.",
        show_default=True,
    ),
    machine: str | None = typer.Option(
        None,
        help="Machine to plan for, such as m3-ultra-512 (see --machines). Default: the profile's machine, or this one.",
    ),
    bits: int | None = typer.Option(None, help="Bits of the weights. Default: as in the model."),
    group_size: int = typer.Option(64, help="Group size of quantized weights."),
    kv_bits: int | None = typer.Option(None, help="KV cache bits: 8, 6, 5 or 4. Default: the model's precision."),
    kv_group_size: int | None = typer.Option(None, help="Group size of a quantized KV cache: 32, 64 or 128."),
    users: str = typer.Option("1,2,4,8", help="Numbers of concurrent users, comma-separated."),
    count: int | None = typer.Option(None, min=1, max=16, help="Number of machines that share the model."),
    parallel: str | None = typer.Option(
        None, help="With --count: tensor or pipeline. Default: the faster over the link."
    ),
    split: str | None = typer.Option(None, help="With --count: layers on each pipeline rank, such as 31,30."),
    link: str | None = typer.Option(None, help="With --count: tb5, tb4, 10gbe or 1gbe. Default: the fastest."),
    context: int | None = typer.Option(None, min=1, help="Maximum context per user, tokens. Default: the model's."),
    budget_gb: float | None = typer.Option(None, min=0, help="Memory for the model, GB. Default: the GPU's limit."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON instead of a table."),
    plot: str | None = typer.Option(None, help="PNG or SVG file for a plot of memory against context."),
    machines: bool = typer.Option(False, "--machines", help="List the known machines and exit."),
    anchors: bool = typer.Option(False, "--anchors", help="List the measured speeds behind the estimates and exit."),
    is_list: bool = typer.Option(False, "--list", help="Rank the shipped profiles for the machine and exit."),
) -> None:
    """Estimate whether a model fits a machine, with context, users and speed. Exits with 3 if it does not fit.

    Nothing is loaded.
    """
    from mlx_backend.planning.ranks_plan import Choice
    from server import plan as shown
    from server import plan_ranks
    from server.commands.plan_question import Question, answer, name_of

    if machines:
        shown.show_machines()
        return
    if anchors:
        shown.show_anchors()
        return
    if is_list:
        _list_profiles(machine, as_json)
        return
    question = Question(
        model=model,
        machine=machine,
        count=count,
        bits=bits,
        group_size=group_size,
        kv_bits=kv_bits,
        kv_group_size=kv_group_size,
        users=users,
        context=context,
        budget_bytes=None if budget_gb is None else round(budget_gb * 1e9),
        parallel=parallel,
        split=split,
        link=link,
    )
    found, name = answer(question), name_of(model)
    if isinstance(found, Choice):
        shown.print_json(plan_ranks.to_document(found, name)) if as_json else plan_ranks.show(found, name)
        if plot is not None:
            raise ConfigError("--plot supports one machine only; omit --count")
        raise typer.Exit(0 if found.plan.fits else 3)
    if as_json:
        shown.print_json(shown.to_document(found, name))
    else:
        shown.show(found, name)
    if plot is not None:
        try:
            shown.draw(found, name, Path(plot))
        except ImportError:
            raise ConfigError("--plot needs matplotlib; install it, or install Pippin with the extra `plots`") from None
        except (OSError, ValueError) as error:
            raise ConfigError(f"--plot {plot}: {error}") from None
    raise typer.Exit(0 if found.fits else 3)


def _list_profiles(machine: str | None, as_json: bool) -> None:
    from mlx_backend.api.errors import ModelLoadError
    from server import plan as shown
    from server.commands.plan_question import machine_of
    from server.profiles.planning import ranked

    try:
        standings = ranked(machine_of(machine))
    except ModelLoadError as error:
        raise ConfigError(str(error)) from None
    if as_json:
        shown.print_json(shown.profiles_document(standings))
    else:
        shown.show_profiles(standings)


def _print_version(is_asked: bool) -> None:
    """Print the versions and exit, if requested."""
    if not is_asked:
        return
    import platform
    from importlib import metadata

    parts = []
    for name in ("mlx", "mlx-lm"):
        try:
            parts.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            parts.append(f"{name} not installed")
    print(f"pippin {__version__} ({', '.join(parts)}, Python {platform.python_version()})")
    raise typer.Exit


@app.command()
def version() -> None:
    """Print the versions of Pippin and of its main dependencies."""
    _print_version(True)


@app.callback()
def _options(
    _: bool = typer.Option(
        False, "--version", help="Same as `pippin version`.", is_eager=True, callback=_print_version
    ),
) -> None:
    """Options of `pippin` itself, handled by their eager callbacks."""


def _print_json(rows: Mapping[str, tuple[Any, str]]) -> None:
    import json

    print(json.dumps({key: {"value": value, "origin": origin} for key, (value, origin) in rows.items()}, indent=2))


def _print_table(rows: Mapping[str, tuple[Any, str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("key", "value", "source", box=None, pad_edge=False)
    for column in table.columns:
        column.overflow = "fold"  # wraps a long path instead of cutting it
    for key, (value, origin) in rows.items():
        text = "none" if value is None else str(value)
        table.add_row(key, text, origin, style="dim" if origin == "default" else None)
    Console(markup=False, highlight=False).print(table)
