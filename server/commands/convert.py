"""`pippin convert`: a model folder from published weights, of a size that fits; what it will be is shown first."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import typer

from mlx_backend.api.errors import ModelLoadError
from mlx_backend.conversion import entry
from mlx_backend.conversion.entry import Choice, ConversionError
from server import pocket
from server.commands import compare
from server.commands.progress import shown
from server.config import ConfigError

_HOWS = ("--bits", "--recipe", "--fit", "--machine")


@dataclass(frozen=True, slots=True)
class _Place:
    """The machine that the model is for, and what it is to do there."""

    machine: Any
    context: int | None
    num_users: int


def convert(
    source: str = typer.Argument(
        ..., metavar="SRC", help="A model folder, a hub id, which is downloaded first, or a config.json, to plan with."
    ),
    out: str | None = typer.Option(
        None, help="The folder to write; else one beside you, called after the model.", metavar="FOLDER"
    ),
    bits: int | None = typer.Option(
        None, help="Store every weight with 2, 3, 4, 5, 6 or 8 bits; 16 keeps them as they are."
    ),
    group_size: int | None = typer.Option(None, help="... in groups of 32, 64 or 128 with a scale each (default 64)."),
    mode: str = typer.Option("affine", help="... in this format of MLX's: affine, mxfp4, nvfp4 or mxfp8."),
    recipe: str | None = typer.Option(
        None, help="Store weights as a recipe says: a shipped one (see --recipes) or a YAML file."
    ),
    fit: str | None = typer.Option(
        None, metavar="SIZE", help="Choose the bits of each weight so that all fit, such as 412GB."
    ),
    machine: str | None = typer.Option(
        None, help="... or so that they fit this machine, such as m3-ultra-512, beside ..."
    ),
    context: str | None = typer.Option(
        None, metavar="TOKENS", help="... a context of so many tokens, such as 32k, for ..."
    ),
    users: int = typer.Option(1, min=1, max=1024, help="... so many users at once."),
    calibrate: str | None = typer.Option(
        None, metavar="FILE", help="... by what each costs on this text, measured; else by errors of the weights."
    ),
    quality: str | None = typer.Option(None, metavar="FILE", help="Compare the result with the source on this text."),
    scales: str | None = typer.Option(
        None, help="Choose scales by search or by range (default: range with --bits, search otherwise)."
    ),
    dtype: str | None = typer.Option(None, help="Cast what is not quantized: bfloat16, float16 or float32."),
    save_recipe: str | None = typer.Option(
        None, metavar="FILE", help="Write the formats that are chosen as a recipe, in YAML."
    ),
    dry_run: bool = typer.Option(False, "--dry-run", help="Show what the model will be, and end."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON instead of tables."),
    is_list: bool = typer.Option(
        False,
        "--recipes",
        help="List the shipped recipes, and end.",
        is_eager=True,
        callback=lambda given: _list(given),
    ),
) -> None:
    """Convert a model to MLX's format, quantized. Shows its size first; goes on where an earlier try was stopped."""
    from server.commands import convert_report as report

    measured = None
    choice = _choice(bits=bits, group_size=group_size, mode=mode, recipe=recipe, fit=fit, scales=scales, dtype=dtype)
    _check_hows({"--bits": bits, "--recipe": recipe, "--fit": fit, "--machine": machine}, mode)
    try:
        folder, origin = _find(source)
        place = _place(machine, context, users)
        if machine is not None and bits is recipe is fit is None and mode == "affine":
            choice = replace(choice, fit_bytes=_budget(folder, place))
        ids = None if quality is None else compare.read_ids(folder, quality)
        if calibrate is not None:
            choice = replace(choice, calibration=tuple(compare.read_ids(folder, calibrate)))
        with shown("measuring") as progress:
            prepared = entry.prepare(folder, origin, choice, progress)
        target = Path(
            out or f"{_name_of(folder, origin)}-{_suffix(choice, prepared.plan.bits_per_weight)}"
        ).expanduser()
        report.show(prepared, target, place.machine, place.context, place.num_users, as_json=as_json)
        if save_recipe is not None:
            report.save_recipe(prepared, Path(save_recipe))
        if dry_run or folder.is_file():
            return
        with shown("converting") as progress:
            done = prepared.run(target, progress)
        if quality is not None and ids is not None:
            with shown("comparing") as progress:
                measured = entry.add_quality(folder, target, ids, Path(quality).name, progress)
    except (ConversionError, ModelLoadError) as error:
        raise ConfigError(str(error)) from None
    except KeyboardInterrupt:
        raise ConfigError("stopped; the same command goes on where this one did") from None
    if not as_json:
        report.show_done(done, target)
        if measured is not None:
            print(compare.in_words(measured))


def _choice(*, fit: str | None, scales: str | None, **given: Any) -> Choice:
    if scales not in (None, "range", "search"):
        raise ConfigError(f"--scales {scales}: range or search")
    try:
        return Choice(fit_bytes=None if fit is None else entry.read_bytes(fit), scales=scales, **given)  # type: ignore[arg-type]
    except ConversionError as error:
        raise ConfigError(f"--fit: {error}") from None


def _check_hows(given: Mapping[str, Any], mode: str) -> None:
    hows = [name for name, value in given.items() if value is not None]
    if len(hows) > 1 and "--machine" in hows:
        hows.remove("--machine")  # the others decide; what comes of it is planned for that machine
    if len(hows) > 1:
        raise ConfigError(f"{' and '.join(hows)}: say one of {', '.join(_HOWS)}")
    if not hows and mode == "affine":
        raise ConfigError(f"say how: one of {', '.join(_HOWS)}; for example `pippin convert SRC --bits 4`")
    if mode != "affine" and hows not in ([], ["--bits"]):
        raise ConfigError(f"--mode is for --bits; a recipe names its own, and {hows[0]} chooses")


def _find(source: str) -> tuple[Path, str]:
    """The source's folder or config.json, and its name: a hub id, or the folder's. Raises ModelLoadError."""
    from mlx_backend.model.checkpoint import find_model

    if pocket.is_meant(source):
        return pocket.folder(), pocket.MODEL_ID
    if (file := Path(source).expanduser()).is_file() and file.suffix == ".json":
        return file, file.resolve().parent.name if file.name == "config.json" else file.stem
    folder = find_model(source)
    return folder, folder.resolve().name if Path(source).expanduser().is_dir() else source


def _place(machine: str | None, context: str | None, num_users: int) -> _Place:
    from mlx_backend.planning.machines import UnknownMachine, find_machine, this_machine

    try:
        found = this_machine() if machine is None else find_machine(machine)
        return _Place(found, None if context is None else entry.read_tokens(context), num_users)
    except (UnknownMachine, ConversionError) as error:
        raise ConfigError(str(error)) from None


def _budget(folder: Path, place: _Place) -> int:
    """What the machine leaves for weights, by the planner. Raises ConversionError."""
    from mlx_backend.planning.memory import MOST_RESERVE_BYTES

    return entry.machine_budget(
        folder,
        limit_bytes=place.machine.gpu_limit_bytes,
        context=place.context,
        num_users=place.num_users,
        reserve_bytes=MOST_RESERVE_BYTES,
    )


def _name_of(folder: Path, origin: str) -> str:
    return re.sub(r"[^\w.-]", "-", origin.rpartition("/")[2]) or folder.name


def _suffix(choice: Choice, bits_per_weight: float) -> str:
    if choice.recipe is not None:
        return Path(choice.recipe).stem
    if choice.fit_bytes is not None:
        return f"{bits_per_weight:.2f}bit"
    return choice.mode if choice.mode != "affine" else f"{choice.bits}bit"


def _list(is_given: bool) -> None:
    if is_given:
        from server.commands import convert_report as report

        report.show_recipes()
        raise typer.Exit(0)
