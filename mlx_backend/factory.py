"""Picks the runner by name and imports it late. The only module besides tests that names a runner."""

from __future__ import annotations

from mlx_backend.engine import DeviceEngine
from mlx_backend.errors import ModelLoadError
from mlx_backend.interface import Engine, EngineConfig
from mlx_backend.runners.base import Runner


def create_engine(config: EngineConfig) -> Engine:
    """An engine that has not been started. Raises ModelLoadError where the backend is not installed."""
    return DeviceEngine(config, _create_runner(config))


def _create_runner(config: EngineConfig) -> Runner:
    if config.backend == "mock":
        from mlx_backend.runners.mock import MockRunner

        return MockRunner(config)
    try:
        from mlx_backend.runners.mlx import MLXRunner
    except ImportError as error:
        raise ModelLoadError(
            f"the mlx backend needs mlx and mlx-lm ({error}); install them, or say --backend mock"
        ) from error
    return MLXRunner(config)
