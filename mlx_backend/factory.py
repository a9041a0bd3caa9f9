"""Picks the runner by name and imports it late, and the reader of a model's shape, too. Nothing else names a runner."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from mlx_backend.api.errors import ModelLoadError
from mlx_backend.api.interface import Engine, EngineConfig, Footprint, MemoryConfig
from mlx_backend.core.membership import Membership
from mlx_backend.engine.engine import DeviceEngine
from mlx_backend.kv_cache.plan import CacheShape
from mlx_backend.model.checkpoint import find_model, open_checkpoint, read_config
from mlx_backend.planning import ranks as planning
from mlx_backend.planning.command_buffers import BufferLimit, decide_buffer_limits
from mlx_backend.planning.macos import macos_version
from mlx_backend.planning.memory import ModelShape
from mlx_backend.planning.ranks import Parallel, RankShapes, Splits
from mlx_backend.planning.wiring import parse_version, residency_environment
from mlx_backend.ranks.runner import RanksRunner
from mlx_backend.runners.base import Runner


def set_buffer_limits(config: MemoryConfig, environ: MutableMapping[str, str]) -> tuple[BufferLimit, ...]:
    """Put the limits of MLX's command buffers into `environ`, and return those in effect. Raises ModelLoadError.

    Call it before MLX computes anything: MLX reads them once in a process.
    """
    limits = decide_buffer_limits(config, environ)
    environ.update({limit.variable: str(limit.value) for limit in limits if limit.is_new})
    return limits


def create_engine(config: EngineConfig) -> Engine:
    """Return an engine that has not been started. Raises ModelLoadError if the backend is not installed."""
    if config.ranks.is_one_model_in_parts:
        return _create_ranks_engine(config)
    runner = create_runner(config)
    if config.debug.record is not None:
        runner = _recorded(runner, config)
    return DeviceEngine(config, runner)


def _create_ranks_engine(config: EngineConfig) -> Engine:
    for key, is_set in (
        ("prefix_cache.dir", config.prefix_cache.dir is not None),
        ("debug.record", config.debug.record is not None),
        ("simulate.machine", config.simulate.machine is not None),
        ("adapters", bool(config.adapters)),
        ("speculation.draft_model", config.speculation.draft_model is not None),
    ):
        if is_set:
            raise ModelLoadError(f"{key} is for a model in one process; leave it unset, or ranks.count at 1")
    build = functools.partial(create_rank_runner, config)
    check = None
    if config.backend == "mlx":
        _rank_runner()  # now: a thread that imports mlx-lm while another loads the tokenizer through it may deadlock
        check = functools.partial(check_split, config)
    runner = RanksRunner(config, build, check=check)
    engine = DeviceEngine(config, runner)
    runner.on_loss(engine.abandon)
    engine.show_ranks(runner.rank_stats)
    return engine


def check_split(config: EngineConfig) -> None:
    """Raise ModelLoadError if the model cannot be split as `config` states."""
    ranks = config.ranks
    splits = open_split_model(config.model_path).splits
    planning.check(splits, ranks.parallel, ranks.count, planning.read_split(ranks.split))


def create_rank_runner(config: EngineConfig, membership: Membership) -> Runner:
    """Return the runner of one of several ranks, all of which receive the same configuration."""
    if config.backend == "mock":
        return create_runner(config)
    set_buffer_limits(config.memory, os.environ)
    # One process on a machine may wire weights, and one that ends while MLX waits for another rank cannot unwire them.
    memory = replace(config.memory, wired="never")
    return _rank_runner()(replace(config, memory=memory, ranks_here=membership.num_here), membership)


def _rank_runner() -> Callable[[EngineConfig, Membership], Runner]:
    """Return the imported runner's class and the check of a split. Raises ModelLoadError if MLX is not installed."""
    _prepare_environment()
    try:
        from mlx_backend.model import rank_shapes  # noqa: F401
        from mlx_backend.runners.rank import RankRunner
    except ImportError as error:
        raise ModelLoadError(f"the mlx backend needs mlx and mlx-lm ({error}); install them") from error
    return RankRunner


def _recorded(runner: Runner, config: EngineConfig) -> Runner:
    if config.prefix_cache.dir is not None:
        raise ModelLoadError(
            "debug.record: a run that is recorded takes nothing from the disk; leave prefix_cache.dir unset"
        )
    if config.adapters:
        raise ModelLoadError("debug.record: a run with adapters cannot be replayed; leave adapters unset")
    from mlx_backend.runners.recording import RecordingRunner

    return RecordingRunner(runner, Path(config.debug.record or "").expanduser(), config)


def create_runner(config: EngineConfig) -> Runner:
    if config.backend == "mock" and config.simulate.machine is not None:
        from mlx_backend.runners.simulated import SimulatedRunner

        return SimulatedRunner(config, *read_shape(config.model_path))
    if config.backend == "mock":
        from mlx_backend.runners.mock import MockRunner

        return MockRunner(config)
    _prepare_environment()
    try:
        from mlx_backend.runners.mlx import MLXRunner
    except ImportError as error:
        raise ModelLoadError(
            f"the mlx backend needs mlx and mlx-lm ({error}); install them, or say --backend mock"
        ) from error
    return MLXRunner(config)


def estimate_footprint(config: EngineConfig) -> Footprint:
    """Return what the model of `config` would take. Call it before any is loaded. Raises ModelLoadError."""
    if config.backend == "mock":
        from mlx_backend.runners import mock

        return mock.estimate_footprint(config)
    _prepare_environment()
    try:
        from mlx_backend.runners import footprint as mlx
    except ImportError as error:
        raise ModelLoadError(f"the mlx backend needs mlx and mlx-lm ({error}); install them") from error
    return mlx.estimate_footprint(config)


def read_shape(
    model: str, weight_bits: int | None = None, group_size: int = 64
) -> tuple[ModelShape, tuple[CacheShape, ...]]:
    """Return the sizes that memory and speed depend on, of a model folder, a hub id or a config.json; computes nothing.

    `weight_bits` plans for weights quantized so; then the config alone counts. Raises ModelLoadError.
    """
    _prepare_environment()
    try:
        from mlx_backend.model import skeleton
    except ImportError as error:
        raise ModelLoadError(f"a model's shape is read with mlx and mlx-lm ({error}); install them") from error
    found = skeleton.read_model(*_builder(model, weight_bits, group_size)())
    return found.shape, found.caches


@dataclass(frozen=True, slots=True)
class SplitModel:
    """A model that may be split over ranks: the ways to split it, and what each rank then holds."""

    splits: Splits
    ranks: Callable[[Parallel, int, tuple[int, ...] | None], RankShapes]
    """Shapes by (parallel, number of ranks, layers of each). Raises ModelLoadError."""


def open_split_model(model: str, weight_bits: int | None = None, group_size: int = 64) -> SplitModel:
    """Open the same kinds of models as `read_shape`; computes nothing. Raises ModelLoadError."""
    _prepare_environment()
    try:
        from mlx_backend.model import rank_shapes
    except ImportError as error:
        raise ModelLoadError(f"a model's shape is read with mlx and mlx-lm ({error}); install them") from error
    build = _builder(model, weight_bits, group_size)
    splits = rank_shapes.read_splits(build)
    return SplitModel(splits, functools.cache(functools.partial(rank_shapes.read_ranks, build, splits)))


def _builder(model: str, weight_bits: int | None, group_size: int) -> Callable[[], tuple[Any, Mapping[str, Any]]]:
    """Return a function that builds the model of a folder, a hub id or a config.json, and returns its configuration."""
    from mlx_backend.model import skeleton
    from mlx_backend.model.loader import build_model

    path = Path(model).expanduser()
    quantization = None if weight_bits is None else skeleton.Quantization(weight_bits, group_size)
    folder = None if path.is_file() else find_model(model)
    if folder is not None and quantization is None and any(folder.glob("*.safetensors")):
        checkpoint = open_checkpoint(folder)
        return lambda: (build_model(checkpoint), checkpoint.config)
    config = read_config(path if folder is None else folder / "config.json")
    return lambda: (skeleton.build_from_config(config, quantization), config)


@functools.cache
def _prepare_environment() -> None:
    """Set the variables that MLX reads when it is imported, on a Mac. A value that is already set stays."""
    if sys.platform != "darwin":
        return
    try:
        mlx = parse_version(metadata.version("mlx"))
    except metadata.PackageNotFoundError:
        return
    for name, value in residency_environment(macos_version()[0], mlx).items():
        os.environ.setdefault(name, value)
