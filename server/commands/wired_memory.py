"""Wired memory for `pippin doctor`: the process that has it, and traces of earlier ones. Changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mlx_backend.planning.macos import find_panics
from mlx_backend.planning.wired_lock import Record, look
from mlx_backend.planning.wiring import Panic, newest_own_panic


@dataclass(frozen=True, slots=True)
class WiredState:
    """State of wired memory on this machine."""

    record: Record
    is_held: bool
    panics: Sequence[Panic] = ()


def read_state() -> WiredState:
    return WiredState(*look(), find_panics())


def describe(policy: str, state: WiredState) -> tuple[Literal["ok", "warning"], str, str]:
    """Return (state, text, advice)."""
    setting = f"memory.wired is {policy}"
    holder = state.record.holder
    panic = newest_own_panic(state.panics, state.record.first_at)
    if panic is not None and policy != "never":
        text = f"{setting}; the GPU driver panicked after Pippin wired memory ({panic})"
        if policy == "always":
            return "warning", f"{text}; the weights are wired anyway", "set memory.wired to auto if that happens again"
        advice = "serving is unwired, one sequence at a time; memory.wired: always wires again, never batches unwired"
        return "warning", text, advice
    if state.is_held:
        name = "another process" if holder is None else str(holder)
        return "ok", f"{setting}; {name} has wired memory; a second server would run unwired", ""
    if holder is not None:
        text = f"{setting}; {holder} ended without unwiring; macOS may still hold its memory"
        return (
            "warning",
            text,
            "restart the machine if memory is missing; stop servers with SIGTERM, never with kill -9",
        )
    num = len(state.panics)
    return "ok", f"{setting}; ignored panics of the GPU driver: {num}" if num else setting, ""
