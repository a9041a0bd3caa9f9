"""The limits of MLX's command buffers: settings, the environment over them, and what is refused. No MLX."""

from __future__ import annotations

import pytest

from mlx_backend.api.errors import ModelLoadError
from mlx_backend.api.interface import MemoryConfig
from mlx_backend.factory import set_buffer_limits
from mlx_backend.planning.command_buffers import decide_buffer_limits

OPS, SIZE = "MLX_MAX_OPS_PER_BUFFER", "MLX_MAX_MB_PER_BUFFER"


def test_without_a_setting_mlx_chooses() -> None:
    environ: dict[str, str] = {}
    assert set_buffer_limits(MemoryConfig(), environ) == ()
    assert environ == {}


def test_settings_are_put_into_the_environment() -> None:
    environ: dict[str, str] = {}
    limits = set_buffer_limits(MemoryConfig(max_ops_per_buffer=1000, max_mb_per_buffer=400), environ)
    assert environ == {OPS: "1000", SIZE: "400"}
    assert [str(limit) for limit in limits] == [
        f"{OPS}=1000 (memory.max_ops_per_buffer)",
        f"{SIZE}=400 (memory.max_mb_per_buffer)",
    ]


def test_the_environment_wins_and_is_reported() -> None:
    environ = {OPS: "70"}
    limits = set_buffer_limits(MemoryConfig(max_ops_per_buffer=1000), environ)
    assert environ == {OPS: "70"}
    assert [str(limit) for limit in limits] == [f"{OPS}=70 (environment)"]


@pytest.mark.parametrize("text", ["", "0", "-5", "many", "1e3", " 7", "1000001", "99999999999"])
def test_what_mlx_would_misread_is_refused(text: str) -> None:
    with pytest.raises(ModelLoadError, match=f"environment {SIZE}: must be a whole number from 1 to 1000000"):
        decide_buffer_limits(MemoryConfig(), {SIZE: text})


@pytest.mark.parametrize("value", [0, -1, 1_000_001])
def test_a_setting_out_of_bounds_is_refused(value: int) -> None:
    with pytest.raises(ValueError, match="max_ops_per_buffer must be at"):
        MemoryConfig(max_ops_per_buffer=value)
