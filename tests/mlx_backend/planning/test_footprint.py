"""What a model is said to take, against what loading it says."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from mlx_backend.api.errors import ModelLoadError
from mlx_backend.api.interface import ContextConfig, EngineConfig, MemoryConfig, MemoryShare, ModelInfo
from mlx_backend.factory import create_engine, estimate_footprint
from mlx_backend.planning.footprint import WANTED_TOKENS
from tests.serving import wait_until
from tests.tiny_models import write_model


def load(config: EngineConfig, share_bytes: int) -> ModelInfo:
    """What is known of a model loaded with that share. Raises ModelLoadError."""
    share = MemoryShare(share_bytes=share_bytes, process_bytes=10**10)
    model_path, backend, context, memory = config.model_path, config.backend, config.context, config.memory
    engine = create_engine(
        EngineConfig(model_path=model_path, backend=backend, context=context, memory=memory, share=share)
    )
    engine.start()
    try:
        wait_until(lambda: engine.model_info is not None or engine.failure is not None)
        if engine.failure is not None:
            raise engine.failure
        assert engine.model_info is not None
        return engine.model_info
    finally:
        engine.close()


@pytest.mark.mlx
@pytest.mark.parametrize("name", ["llama", "deepseek_v3", "gemma3"])
@pytest.mark.parametrize("reserve_gb", [None, 0.001])
def test_with_the_least_a_model_loads_and_with_less_it_does_not(
    tmp_path: Path, name: str, reserve_gb: float | None
) -> None:
    folder = write_model(tmp_path, name)
    config = EngineConfig(model_path=str(folder), memory=MemoryConfig(limit_gb=1.0, reserve_gb=reserve_gb))
    said = estimate_footprint(config)
    assert said.limit_bytes == 10**9
    assert said.weights_bytes < said.least_bytes <= said.wanted_bytes
    least = load(config, said.least_bytes)
    assert least.memory is not None
    assert (least.memory.limit_bytes, least.memory.weights_bytes) == (said.least_bytes, said.weights_bytes)
    with pytest.raises(ModelLoadError, match="its share beside the other models"):
        load(config, said.least_bytes - said.least_bytes // 20)
    wanted = load(config, said.wanted_bytes)
    assert (wanted.context_limit, wanted.context_limited_by) == (2048, "model")


@pytest.mark.mlx
def test_measuring_leaves_no_thread_and_no_memory(tmp_path: Path) -> None:
    import mlx.core as mx

    config = EngineConfig(model_path=str(write_model(tmp_path, "llama")))
    before, threads = mx.get_active_memory(), threading.active_count()
    estimate_footprint(config)
    assert (mx.get_active_memory(), threading.active_count()) == (before, threads)


def test_the_mock_wants_room_for_a_request() -> None:
    config = EngineConfig(model_path="mock", backend="mock", context=ContextConfig(limit=8))
    short, long = estimate_footprint(config), estimate_footprint(EngineConfig(model_path="mock", backend="mock"))
    assert short.limit_bytes is None
    assert short.weights_bytes == long.weights_bytes == 1 << 20
    assert short.wanted_bytes < long.wanted_bytes
    assert long.wanted_bytes - long.weights_bytes >= 16 * WANTED_TOKENS
