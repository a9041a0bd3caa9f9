"""Running out of memory: it raises an error that can be caught, and computing works afterwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from mlx_backend.acceptance.checks import Check, Options, Outcome
from mlx_backend.api.errors import OutOfMemory
from mlx_backend.runners import device
from mlx_backend.runners.base import failed

_PIECE_BYTES = 1 << 30
_BEYOND = 1.05
"""Fraction of the working set recommended by Metal that is filled, and then read in one command buffer."""


def run(options: Options, report: Callable[[str], None]) -> Outcome:
    """Request one impossible buffer; on Metal, in a full run, fill the working set. Compute after each."""
    facts = device.read_facts()
    if not facts.recommended_bytes:
        return Outcome(skipped="needs Metal: on a CPU, MLX does not survive an allocation that fails")
    report("one buffer larger than any")
    figures: dict[str, Any] = {"buffer": _attempt(_ask_for_too_much)}
    checks = [_check("a buffer that cannot be had", figures["buffer"])]
    if not options.is_quick:
        report("the whole working set")
        figures["working_set"] = _attempt(lambda: _fill(int(_BEYOND * facts.recommended_bytes)))
        # It may succeed, slowly, if macOS pages; it must not end the process, and computing must work afterwards.
        checks.append(Check(name="computing after a full working set", measured=_compute(), low=1, unit=""))
    return Outcome(figures=figures, checks=checks)


def _check(name: str, figures: dict[str, Any]) -> Check:
    return Check(name=name, measured=figures["is_out_of_memory"] * figures["recovers"], low=1, unit="")


def _attempt(allocate: Callable[[], None]) -> dict[str, Any]:
    """Return the error, whether the engine treats it as out of memory, and whether computing works afterwards."""
    error: BaseException | None = None
    try:
        allocate()
    except (RuntimeError, MemoryError, ValueError) as raised:
        error = raised
    mx.clear_cache()
    return {
        "error": None if error is None else f"{type(error).__name__}: {error}",
        "is_out_of_memory": int(error is not None and isinstance(failed("step", error), OutOfMemory)),
        "recovers": _compute(),
    }


def _ask_for_too_much() -> None:
    # More than any machine has, so that no system tries: Linux would promise an allocation that is merely too large,
    # and end the process when it is used.
    mx.eval(mx.zeros((1 << 30, 1 << 30), dtype=mx.uint8))


def _fill(num_bytes: int) -> None:
    pieces = [mx.zeros((_PIECE_BYTES,), dtype=mx.uint8) for _ in range(num_bytes // _PIECE_BYTES)]
    for piece in pieces:
        mx.eval(piece)
    mx.eval(sum((mx.sum(piece) for piece in pieces), mx.array(0)))


def _compute() -> int:
    """Return 1 if a product is correct."""
    try:
        return int(mx.sum(mx.ones((64, 64)) @ mx.ones((64, 64))).item() == 64.0**3)
    except RuntimeError:
        return 0
