"""Build the served models from the configuration: located and briefly checked, but not loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from mlx_backend.api.errors import ModelLoadError
from mlx_backend.api.interface import AdapterConfig, Engine, EngineConfig, MemoryShare
from mlx_backend.factory import create_engine, estimate_footprint
from mlx_backend.model.adapter_files import open_adapter
from mlx_backend.model.checkpoint import find_model, open_checkpoint
from mlx_backend.model.draft_files import open_draft
from server import model_files, pocket
from server.adapters import read_written
from server.config import Config, engine_config, with_own
from server.config_models import ModelEntry
from server.rank_hosts import placed
from server.service.adapters import AdapterSet
from server.service.mock_script import MockAuthor, read_script
from server.service.model_instance import Recipe, Report
from server.service.registry import ServedModel
from server.simulation import simulated
from server.text.tokenizer import ByteTokenizer, load_tokenizer


def build_models(config: Config) -> list[ServedModel]:
    """Return the models of the configuration, not started. Raises ModelLoadError."""
    if config.models:
        return [_build_one(config, entry) for entry in config.models]
    return [build_model(config)]


def build_model(config: Config) -> ServedModel:
    """Return the one model of the configuration. Its engine is built, so that missing parts are reported at once."""
    if config.simulate.machine is not None:
        name, told = simulated(config)
        path = None
    elif config.backend == "mock":
        name, told, path = "mock", engine_config(config, "mock"), None
    else:
        name, path = _find(config.model)
        told = engine_config(config, str(path))
    told = _with_draft(replace(placed(config, told), adapters=_read_adapters(config.adapters)), path)
    _check_adapters(told)
    adapters = AdapterSet(told.adapters, _adapters_folder(config))
    recipe = _recipe(config, told, path, adapters)
    keep_s = config.residency.keep_alive_s
    engine = create_engine(told)
    return ServedModel(
        name,
        engine,
        recipe.load_tokenizer,
        aliases=split_names(config.aliases),
        adapters=adapters,
        recipe=recipe,
        is_pinned=keep_s is None,
        keep_alive_s=keep_s,
        defaults=config.defaults,
    )


def split_names(written: str | None) -> tuple[str, ...]:
    """Split names at commas."""
    return tuple(name for each in (written or "").split(",") if (name := each.strip()))


def _build_one(config: Config, entry: ModelEntry) -> ServedModel:
    own = with_own(config, entry)
    path = None if own.backend == "mock" else _find(own.model)[1]
    told = _with_draft(engine_config(own, "mock" if path is None else str(path), entry.adapters), path)
    _check_adapters(told)
    adapters = AdapterSet(told.adapters, _adapters_folder(config), entry.adapter)
    recipe = _recipe(own, told, path, adapters)
    keep_s = None if entry.pinned else entry.keep_alive_s or config.residency.keep_alive_s
    return ServedModel(
        entry.name,
        None,
        recipe.load_tokenizer,
        aliases=entry.aliases,
        adapters=adapters,
        recipe=recipe,
        estimate_footprint=lambda: estimate_footprint(replace(told, adapters=adapters.held)),
        is_required=entry.pinned,
        is_pinned=entry.pinned,
        keep_alive_s=keep_s,
        defaults=entry.defaults,
    )


def _read_adapters(written: str | None) -> tuple[AdapterConfig, ...]:
    try:
        return read_written(written)
    except ValueError as error:
        raise ModelLoadError(str(error)) from error


def _check_adapters(told: EngineConfig) -> None:
    """Raise ModelLoadError if an adapter's files are incomplete, before heavy imports."""
    if told.backend == "mlx":
        for adapter in told.adapters:
            open_adapter(adapter.name, Path(adapter.path).expanduser())


def _with_draft(told: EngineConfig, path: Path | None) -> EngineConfig:
    """With the folder of its draft model, which is checked beside the model's own. Raises ModelLoadError."""
    name = told.speculation.draft_model
    if name is None or path is None:
        return told
    draft = open_draft(name, path).path
    return replace(told, speculation=replace(told.speculation, draft_model=str(draft)))


def _adapters_folder(config: Config) -> Path | None:
    return None if config.adapters_folder is None else Path(config.adapters_folder).expanduser()


def _recipe(config: Config, told: EngineConfig, path: Path | None, adapters: AdapterSet) -> Recipe:
    def build(share: MemoryShare | None) -> Engine:
        return create_engine(replace(told, share=share, adapters=adapters.held))

    if path is None:
        return _mock_recipe(config, build)
    is_repeated = config.residency.verify == "always"

    draft = told.speculation.draft_model

    def check(report: Report) -> None:
        model_files.ensure(path, is_repeated=is_repeated, report=report)
        if draft is not None:
            model_files.ensure(Path(draft), is_repeated=is_repeated, report=report)

    is_checked = config.residency.verify != "never"
    return Recipe(
        build_engine=build,
        load_tokenizer=partial(load_tokenizer, path),
        check=check if is_checked else None,
        grammars=config.grammars,
        warms_grammars=True,
        computes_ahead=config.prefix_cache.next_turn,
    )


def _mock_recipe(config: Config, build: Callable[[MemoryShare | None], Engine]) -> Recipe:
    script = () if config.mock.script is None else read_script(Path(config.mock.script).expanduser())
    folder = None if config.mock.tokenizer is None else Path(config.mock.tokenizer).expanduser()
    return Recipe(
        build_engine=build,
        load_tokenizer=ByteTokenizer if folder is None else partial(load_tokenizer, folder, needs_config=False),
        author=MockAuthor(script, has_tokenizer=folder is not None) if script or folder else None,
        grammars=config.grammars,
        warms_grammars=folder is not None,
        computes_ahead=config.prefix_cache.next_turn,
    )


def _find(model: str | None) -> tuple[str, Path]:
    """Return the model's name over HTTP and its folder, with files checked to be complete. Raises ModelLoadError."""
    if pocket.is_meant(model):
        name, path = pocket.MODEL_ID, pocket.folder()
    else:
        asked = model or ""
        path = find_model(asked)
        name = path.resolve().name if Path(asked).expanduser().is_dir() else asked
    open_checkpoint(path)  # before heavy imports: reports a broken folder at once
    return name, path
