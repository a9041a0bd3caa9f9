"""The command line: `serve`, `plan`, `config`, `version`, and a command for each module of `server/commands`.

The options of `serve` and `config` come from the declared fields. Everything heavy is imported by the command that
needs it, so that `pippin --help` answers at once.
"""

from __future__ import annotations

import gc
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import typer

from mlx_backend.api.interface import SimulateConfig
from server import __version__, pocket
from server.commands import (
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
from server.config import Config, ConfigError, Field, Resolved, fields, resolve, sections, value_of

app = typer.Typer(
    name="pippin",
    help="An LLM inference server on MLX with an OpenAI-compatible HTTP interface.",
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
app.command("import")(import_model.import_model)
app.add_typer(cache.app, name="cache")
app.add_typer(keys.app, name="keys")
batch.add_to(app, lambda arguments: _parse_serve(arguments))
install_service.add_to(app, lambda arguments: _parse_serve(arguments))
doctor.add_to(app, lambda arguments: _parse_serve(arguments))


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code; 2 and one line for a configuration that cannot be used."""
    try:
        app(args=argv, prog_name="pippin")
    except ConfigError as error:
        print(f"pippin: {error}", file=sys.stderr)
        sys.exit(2)


# --- options out of fields

_MODEL_HELP = f"Same as --model; without either, {pocket.MODEL_ID!r}, the model that comes with Pippin."


def _with_config_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give `command(resolved, **own)` the parameters MODEL, --config and one flag per declared field.

    typer reads a command's signature; this writes one. `command`'s own keyword parameters stay.
    """
    taken = inspect.signature(command, eval_str=True).parameters.values()
    own = [p.replace(kind=p.KEYWORD_ONLY) for p in taken if p.name != "resolved"]

    def run(**given: Any) -> None:
        rest = {p.name: given.pop(p.name) for p in own}
        command(_resolve(given), **rest)

    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__signature__ = inspect.Signature([*_config_parameters(), *own])  # type: ignore[attr-defined]
    return run


def _config_parameters() -> Iterator[inspect.Parameter]:
    model = typer.Argument(None, metavar="MODEL", help=_MODEL_HELP, show_default=False)
    yield _parameter("positional_model", str | None, model)
    file = typer.Option(None, "--config", metavar="FILE", help="YAML file of settings.", show_default=False)
    yield _parameter("file", Path | None, file)
    for declared in fields():
        yield _parameter(_parameter_name(declared), str | None, _option(declared))


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _parameter_name(declared: Field) -> str:
    return declared.key.replace(".", "__")


def _option(declared: Field) -> Any:
    """Every flag takes text: `server.config` reads it as it reads the other sources, with the same errors."""
    default = "none" if declared.default is None else str(declared.default)
    return typer.Option(
        None,
        *filter(None, (declared.flag, declared.short_flag)),
        help=f"{declared.help} (default {default})".replace("[", r"\["),  # no markup
        metavar="|".join(map(str, declared.choices)) or declared.type.__name__.upper(),
        rich_help_panel=_panel(declared),
        show_default=False,
    )


def _panel(declared: Field) -> str | None:
    section = sections().get(declared.section)
    return f"{declared.section}: {section.__doc__}" if section else None


def _resolve(given: dict[str, Any]) -> Resolved:
    positional, file = given.pop("positional_model"), given.pop("file")
    flags: dict[str, str | None] = {f.key: given[_parameter_name(f)] for f in fields()}
    if positional is not None:
        if flags["model"] not in (None, positional):
            raise ConfigError(f"two models: {positional!r} and --model {flags['model']!r}")
        flags["model"] = positional
    return resolve(file, os.environ, flags)


_UsageError: Any = typer.BadParameter.__base__  # its home differs from one version of typer to the next


def _parse_serve(arguments: Sequence[str]) -> Config:
    """The configuration of `pippin serve` with these arguments. Raises ConfigError."""
    group: Any = typer.main.get_command(app)
    try:
        context = group.commands["serve"].make_context("serve", list(arguments))
    except _UsageError as error:
        raise ConfigError(error.format_message()) from None
    return _resolve(dict(context.params)).config


# --- commands


@app.command()
@_with_config_options
def serve(resolved: Resolved) -> None:
    """Serve a model over HTTP until told to stop."""
    config = resolved.config
    if config.simulate != SimulateConfig():
        from server import simulation

        simulation.check(config)
    if config.backend == "mlx" and config.model is None and not config.models and not pocket.is_here():
        raise ConfigError(
            "no model: say `pippin serve MODEL`, MODEL being a folder or hub id of an MLX model, or --backend mock"
        )
    gc.disable()  # nothing of what is imported is garbage, and to look takes a tenth of a start
    from server.run import serve as run

    gc.enable()
    raise typer.Exit(run(config, lambda: resolved.again().config, origins=resolved.origins))


@app.command("config")
@_with_config_options
def show_config(
    resolved: Resolved,
    as_json: bool = typer.Option(False, "--json", help="Print JSON instead of a table."),
) -> None:
    """Print the settings as they resolve, and where each came from."""
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
        help="Plan for this machine, such as m3-ultra-512 (see --machines); else for the profile's or the one at hand.",
    ),
    bits: int | None = typer.Option(None, help="Plan with weights quantized to so many bits."),
    group_size: int = typer.Option(64, help="... in groups of so many."),
    kv_bits: int | None = typer.Option(None, help="Plan with a KV cache of so many bits: 8, 6, 5 or 4."),
    kv_group_size: int | None = typer.Option(None, help="... in groups of so many: 32, 64 or 128."),
    users: str = typer.Option("1,2,4,8", help="For so many users at once, with commas between."),
    count: int | None = typer.Option(None, min=1, max=16, help="Over so many such machines together."),
    parallel: str | None = typer.Option(None, help="... split so: tensor or pipeline; else the better for the link."),
    split: str | None = typer.Option(None, help="... with so many layers on each of a pipeline's ranks, as 31,30."),
    link: str | None = typer.Option(None, help="... connected by tb5, tb4, 10gbe or 1gbe; else as the machines can."),
    context: int | None = typer.Option(None, min=1, help="No more context than that for a user, tokens."),
    budget_gb: float | None = typer.Option(None, min=0, help="Memory for the model; else the GPU's limit."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON instead of a table."),
    plot: str | None = typer.Option(None, help="Draw memory against context into this PNG or SVG file."),
    machines: bool = typer.Option(False, "--machines", help="List the machines that are known, and end."),
    anchors: bool = typer.Option(False, "--anchors", help="List the speeds that estimates are fitted to, and end."),
    is_list: bool = typer.Option(False, "--list", help="Rank the shipped profiles for the machine, and end."),
) -> None:
    """Say what of a model fits a machine: context, users, speed, and what would help. Nothing is loaded."""
    from mlx_backend.planning.ranks_plan import Choice
    from server import plan as shown
    from server import plan_ranks

    if machines:
        shown.show_machines()
        return
    if anchors:
        shown.show_anchors()
        return
    if is_list:
        _list_profiles(machine, as_json)
        return
    kv = {"bits": kv_bits, "group_size": kv_group_size}
    weights = (bits, group_size)
    budget = None if budget_gb is None else round(budget_gb * 1e9)
    options = {"users": users, "context": context, "budget_bytes": budget}
    ranks = {"parallel": parallel, "split": split, "link": link}
    found, name = _planned(model, machine, count, weights, kv, ranks, **options)
    if isinstance(found, Choice):
        shown.print_json(plan_ranks.to_document(found, name)) if as_json else plan_ranks.show(found, name)
        if plot is not None:
            raise ConfigError("--plot draws one machine; leave --count out")
        raise typer.Exit(0 if found.plan.fits else 3)
    if as_json:
        shown.print_json(shown.to_document(found, name))
    else:
        shown.show(found, name)
    if plot is not None:
        try:
            shown.draw(found, name, Path(plot))
        except ImportError:
            raise ConfigError("--plot needs matplotlib; install it, or Pippin with the extra plots") from None
        except (OSError, ValueError) as error:
            raise ConfigError(f"--plot {plot}: {error}") from None
    raise typer.Exit(0 if found.fits else 3)


def _planned(
    model: str,
    machine: str | None,
    count: int | None,
    weights: tuple[int | None, int],
    kv: dict[str, int | None],
    ranks: dict[str, str | None],
    **options: Any,
) -> tuple[Any, str]:
    """(the plan, or the choice of one over several machines; the model's name). Raises ConfigError."""
    from mlx_backend.api.errors import ModelLoadError
    from mlx_backend.api.interface import KVCacheConfig
    from mlx_backend.factory import read_shape
    from mlx_backend.planning.planner import build_plan
    from server.plan import numbers
    from server.plan_ranks import plan_ranks
    from server.profiles import find_profile
    from server.profiles.planning import choose_file, limit_bytes, plan_profile, raised_note

    is_pocket, profile = pocket.is_meant(model), find_profile(model)
    try:
        options["users"] = numbers(options["users"])
    except ValueError:
        raise ConfigError(f"--users {options['users']!r}: whole numbers from 1, with commas between") from None
    try:
        if profile is not None:
            at = _machine(machine or profile.machine)
            kv_cache = KVCacheConfig(**{**kv, "bits": kv["bits"] or profile.kv_bits})
            profile = replace(profile, num_machines=count or profile.num_machines)
            if profile.num_machines > 1:
                if options["budget_bytes"] is None:
                    options |= {"budget_bytes": limit_bytes(profile, at), "note": raised_note(profile, at)}
                file, num = str(profile.model_file), profile.num_machines
                return plan_ranks(file, at, kv_cache, num, **ranks, weights=weights, **options), model
            _refuse(ranks)
            return plan_profile(profile, at, weights=weights, kv_cache=kv_cache, **options), model
        at = _machine(machine)
        shipped = choose_file(model, at, KVCacheConfig(**kv))
        source = str(shipped or (pocket.folder() if is_pocket else model))
        if count is not None and count > 1:
            found: Any = plan_ranks(source, at, KVCacheConfig(**kv), count, **ranks, weights=weights, **options)
        else:
            _refuse(ranks)
            found = build_plan(*read_shape(source, *weights), at, KVCacheConfig(**kv), **options)
    except (ModelLoadError, ValueError) as error:
        raise ConfigError(str(error)) from None
    return found, _name_of(Path(model)) or model


def _refuse(ranks: Mapping[str, str | None]) -> None:
    given = ", ".join(f"--{name}" for name, value in ranks.items() if value is not None)
    if given:
        raise ConfigError(f"{given}: for several machines; say how many with --count")


def _name_of(path: Path) -> str:
    """What a model is called: by its folder, or by a file that is not every model's config.json."""
    if path.is_file() and path.name != "config.json":
        return path.stem
    return path.resolve().name if path.is_dir() else path.resolve().parent.name if path.is_file() else ""


def _list_profiles(machine: str | None, as_json: bool) -> None:
    from mlx_backend.api.errors import ModelLoadError
    from server import plan as shown
    from server.profiles.planning import ranked

    try:
        standings = ranked(_machine(machine))
    except ModelLoadError as error:
        raise ConfigError(str(error)) from None
    if as_json:
        shown.print_json(shown.profiles_document(standings))
    else:
        shown.show_profiles(standings)


def _machine(name: str | None) -> Any:
    """The machine of this id, or the one at hand. Raises ConfigError."""
    from mlx_backend.planning.machines import UnknownMachine, find_machine, this_machine

    try:
        found = find_machine(name) if name is not None else this_machine()
    except UnknownMachine as error:
        raise ConfigError(str(error)) from None
    if found is None:
        raise ConfigError("this machine's memory cannot be told; name one with --machine (see --machines)")
    return found


@app.command()
def version() -> None:
    """Print the versions of Pippin and of what it computes with."""
    import platform
    from importlib import metadata

    parts = []
    for name in ("mlx", "mlx-lm"):
        try:
            parts.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            parts.append(f"{name} not installed")
    print(f"pippin {__version__} ({', '.join(parts)}, Python {platform.python_version()})")


def _print_json(rows: Mapping[str, tuple[Any, str]]) -> None:
    import json

    print(json.dumps({key: {"value": value, "origin": origin} for key, (value, origin) in rows.items()}, indent=2))


def _print_table(rows: Mapping[str, tuple[Any, str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("key", "value", "where from", box=None, pad_edge=False)
    for column in table.columns:
        column.overflow = "fold"  # a long path is wrapped, never cut
    for key, (value, origin) in rows.items():
        text = "none" if value is None else str(value)
        table.add_row(key, text, origin, style="dim" if origin == "default" else None)
    Console(markup=False, highlight=False).print(table)
