"""Limits on the work in one MLX command buffer: two environment variables, read once, when Metal is first used.

Values already in the environment take precedence over the settings. Without either, MLX chooses by the chip. On a CPU
there are no command buffers, and the variables have no effect. Pure; no MLX.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from mlx_backend.api.config import LARGEST_PER_BUFFER, MemoryConfig
from mlx_backend.api.errors import ModelLoadError


@dataclass(frozen=True, slots=True)
class BufferLimit:
    """One variable with its value, and the origin of that value."""

    variable: str
    value: int
    origin: str
    is_new: bool
    """Whether it must be added to the environment."""

    def __str__(self) -> str:
        return f"{self.variable}={self.value} ({self.origin})"


def decide_buffer_limits(config: MemoryConfig, environ: Mapping[str, str]) -> tuple[BufferLimit, ...]:
    """Return the limits that MLX will read, without variables that stay unset. Raises ModelLoadError."""
    settings = (
        ("MLX_MAX_OPS_PER_BUFFER", "memory.max_ops_per_buffer", config.max_ops_per_buffer),
        ("MLX_MAX_MB_PER_BUFFER", "memory.max_mb_per_buffer", config.max_mb_per_buffer),
    )
    limits = []
    for variable, key, value in settings:
        if variable in environ:
            limits.append(BufferLimit(variable, _read(variable, environ[variable]), "environment", False))
        elif value is not None:
            limits.append(BufferLimit(variable, value, key, True))
    return tuple(limits)


def _read(variable: str, text: str) -> int:
    """Read a value. MLX would read 0 from other text, and then end a command buffer after every operation."""
    value = int(text) if re.fullmatch("[0-9]{1,7}", text) else 0
    if not 1 <= value <= LARGEST_PER_BUFFER:
        raise ModelLoadError(
            f"environment {variable}: must be a whole number from 1 to {LARGEST_PER_BUFFER}, not {text!r}; "
            "correct or unset it"
        )
    return value
