"""`pippin convert`: convert published weights to a model folder of a size that fits; the plan is shown first."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import typer

from mlx_backend.api.errors import ModelLoadError
from mlx_backend.conversion import entry
from mlx_backend.conversion.entry import Choice, ConversionError, Prepared, Remote
from mlx_backend.model.checkpoint import HUB_ID, find_model
from server import pocket
from server.commands import compare, hub_weights, pull
from server.commands.progress import shown
from server.commands.samples import read_samples
from server.config import ConfigError

_HOWS = ("--bits", "--recipe", "--fit", "--machine")


@dataclass(frozen=True, slots=True)
class _Place:
    """Target machine of the model, and its intended use there."""

    machine: Any
    context: int | None
    num_users: int


@dataclass(frozen=True, slots=True)
class _Request:
    """The command's options, checked."""

    choice: Choice
    place: _Place
    is_for_machine: bool
    """Whether the size is the machine's memory for weights."""
    calibrate: str | None
    quality: str | None
    save_recipe: str | None
    out: str | None
    as_json: bool

    def target(self, prepared: Prepared) -> Path:
        """Return the folder to write."""
        name = re.sub(r"[^\w.-]", "-", prepared.origin.rpartition("/")[2])
        return Path(self.out or f"{name}-{_suffix(self, prepared)}").expanduser()


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
        None, metavar="FILE", help="Measure on this text, or conversations (.jsonl), what each format costs."
    ),
    losses: str | None = typer.Option(
        None, metavar="FILE", help="... and keep what was measured in this file, to go on from and for other sizes."
    ),
    quality: str | None = typer.Option(None, metavar="FILE", help="Compare the result with the source on this text."),
    scales: str | None = typer.Option(
        None, help="Choose scales by search or by range (default: range with --bits, search otherwise)."
    ),
    dtype: str | None = typer.Option(None, help="Cast what is not quantized: bfloat16, float16 or float32."),
    save_recipe: str | None = typer.Option(
        None, metavar="FILE", help="Write the formats that are chosen as a recipe, in YAML."
    ),
    from_hub: bool = typer.Option(
        False, "--from-hub", help="Fetch a weight file at a time, so that the disk needs the result and a few of them."
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
    """Convert a model to MLX's format, quantized. Shows its size first; resumes an interrupted conversion."""
    choice = _choice(bits=bits, group_size=group_size, mode=mode, recipe=recipe, fit=fit, scales=scales, dtype=dtype)
    given = {"--bits": bits, "--recipe": recipe, "--fit": fit, "--machine": machine, "--calibrate": calibrate}
    given["--scales"] = scales
    _check_hows(given, mode)
    if losses is not None:
        if calibrate is None or not (fit or machine):
            raise ConfigError("--losses is for --calibrate with --fit or --machine: nothing is measured without them")
        choice = replace(choice, losses=Path(losses).expanduser())
    is_for_machine = machine is not None and mode == "affine" and (bits, recipe, fit) == (None, None, None)
    request = _Request(
        choice, _place(machine, context, users), is_for_machine, calibrate, quality, save_recipe, out, as_json
    )
    try:
        if _is_of_hub(source):
            _convert_of_hub(source, request, is_dry=dry_run, is_whole=not from_hub)
        else:
            folder, origin = _find(source)
            prepared = _prepare(folder, origin, request)
            _show(prepared, request)
            if not dry_run and folder.is_dir():
                _run(prepared, folder, request)
    except (ConversionError, ModelLoadError) as error:
        raise ConfigError(str(error)) from None
    except KeyboardInterrupt:
        raise ConfigError("stopped; the same command goes on where this one did") from None


def _convert_of_hub(source: str, request: _Request, *, is_dry: bool, is_whole: bool) -> None:
    """Show the plan for a hub model before fetching it; then fetch it, whole or a file at a time."""
    planned = _prepare(hub_weights.fetch_config(source), source, replace(request, calibrate=None, quality=None))
    _show(planned, request)
    if is_dry:
        return
    if is_whole:
        folder, remote = pull.fetch(source), None
    else:
        if request.calibrate or request.quality:
            raise ConversionError("--calibrate and --quality need the whole model here; leave --from-hub out")
        entry.check_free(request.target(planned))
        folder = request.target(planned) / ".conversion" / "source"
        remote = hub_weights.open_remote(source, folder)
    prepared = _prepare(folder, source, request, remote)
    if prepared.plan.weight_file_bytes != planned.plan.weight_file_bytes:
        _show(prepared, request)
    _run(prepared, folder, replace(request, out=str(request.target(planned))))


def _prepare(folder: Path, origin: str, request: _Request, remote: Remote | None = None) -> Prepared:
    """Plan the conversion. Raises ConversionError, ModelLoadError."""
    choice, place = request.choice, request.place
    if request.is_for_machine:
        choice = replace(choice, fit_bytes=_budget(folder, place))
    if request.calibrate is not None:
        choice = replace(choice, calibration=read_samples(folder, request.calibrate))
    if request.quality is not None:
        read_samples(folder, request.quality)  # refuses an unreadable text early
    with shown("measuring") as progress:
        return entry.prepare(folder, origin, choice, progress, remote)


def _show(prepared: Prepared, request: _Request) -> None:
    from server.commands import convert_report as report

    place = request.place
    report.show(
        prepared, request.target(prepared), place.machine, place.context, place.num_users, as_json=request.as_json
    )
    if request.save_recipe is not None:
        report.save_recipe(prepared, Path(request.save_recipe))


def _run(prepared: Prepared, folder: Path, request: _Request) -> None:
    from server.commands import convert_report as report

    target = request.target(prepared)
    with shown("converting") as progress:
        done = prepared.run(target, progress)
    if not request.as_json:
        report.show_done(done, target)
    if request.quality is not None:
        with shown("comparing") as progress:
            samples = read_samples(folder, request.quality)
            quality = entry.add_quality(folder, target, samples, Path(request.quality).name, progress)
        if not request.as_json:
            print(compare.in_words(quality))


def _choice(*, fit: str | None, scales: str | None, **given: Any) -> Choice:
    if scales not in (None, "range", "search"):
        raise ConfigError(f"--scales {scales}: range or search")
    try:
        return Choice(fit_bytes=None if fit is None else entry.read_bytes(fit), scales=scales, **given)  # type: ignore[arg-type]
    except ConversionError as error:
        raise ConfigError(f"--fit: {error}") from None


def _check_hows(given: Mapping[str, Any], mode: str) -> None:
    hows = [name for name in _HOWS if given[name] is not None]
    if len(hows) > 1 and "--machine" in hows:
        hows.remove("--machine")  # the other options decide; the result is planned for that machine
    if len(hows) > 1:
        raise ConfigError(f"{' and '.join(hows)}: say one of {', '.join(_HOWS)}")
    if not hows and mode == "affine":
        raise ConfigError(f"say how: one of {', '.join(_HOWS)}; for example `pippin convert SRC --bits 4`")
    if given["--calibrate"] is not None and given["--scales"] is not None:
        raise ConfigError("--calibrate and --scales: say one of them; calibration chooses codes and scales")
    if mode != "affine" and hows not in ([], ["--bits"], ["--machine"]):
        raise ConfigError(f"--mode is for --bits; a recipe names its own, and {hows[0]} chooses")


def _is_of_hub(source: str) -> bool:
    return not pocket.is_meant(source) and not Path(source).expanduser().exists() and bool(HUB_ID.fullmatch(source))


def _find(source: str) -> tuple[Path, str]:
    """Return the source's folder or config.json, and its name. Raises ModelLoadError."""
    if pocket.is_meant(source):
        return pocket.folder(), pocket.MODEL_ID
    if (file := Path(source).expanduser()).is_file() and file.suffix == ".json":
        return file, file.resolve().parent.name if file.name == "config.json" else file.stem
    folder = find_model(source)
    return folder, folder.resolve().name


def _place(machine: str | None, context: str | None, num_users: int) -> _Place:
    from mlx_backend.planning.machines import UnknownMachine, find_machine, this_machine

    try:
        found = this_machine() if machine is None else find_machine(machine)
        return _Place(found, None if context is None else entry.read_tokens(context), num_users)
    except (UnknownMachine, ConversionError) as error:
        raise ConfigError(str(error)) from None


def _budget(folder: Path, place: _Place) -> int:
    """Return the machine's memory for weights, from the planner. Raises ConversionError."""
    from mlx_backend.planning.memory import MOST_RESERVE_BYTES

    return entry.machine_budget(
        folder,
        limit_bytes=place.machine.gpu_limit_bytes,
        context=place.context,
        num_users=place.num_users,
        reserve_bytes=MOST_RESERVE_BYTES,
    )


def _suffix(request: _Request, prepared: Prepared) -> str:
    choice = request.choice
    if choice.recipe is not None:
        return Path(choice.recipe).stem
    if choice.mode != "affine":
        return choice.mode
    return f"{prepared.plan.bits_per_weight:.2f}bit" if choice.bits is None else f"{choice.bits}bit"


def _list(is_given: bool) -> None:
    if is_given:
        from server.commands import convert_report as report

        report.show_recipes()
        raise typer.Exit(0)
