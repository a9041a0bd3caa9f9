"""The policy of wired memory: whether a process wires its model's weights, and why. Pure; no MLX.

macOS pages out memory that is not wired, and a large model then crawls: 0.6 instead of 64 tokens per second on an M3
Ultra (ollama#17367), 0.73 instead of 31.5 on an M4 Max (vmlx-swift#418). But a bug of the GPU driver (IOGPUFamily,
macOS 15 to 26.5.2, no fix known) makes the machine panic when buffers enter and leave a residency set while the GPU
works: 3 of 3 runs within two minutes, against none of 10 with nothing wired (mlx#3186). One request is enough
(omlx#978, omlx#1265, mlx-lm#1666), so computing one sequence at a time does not help; keeping KV caches out of the sets
should.

The rules by which MLX fills the sets come from its sources, mlx/backend/metal/allocator.cpp and resident.cpp at commit
846d176 (0.32.2 and later); for 0.32.4 only from resident.h in its wheel for macOS:

- `insert` is called for every new buffer, also while nothing is wired. A buffer that would take the total past the
  limit is recorded and stays outside; it is not tried again before the limit changes.
- `set_wired_limit` calls `resize`. A higher limit adds recorded buffers that fit, in the order of a hash table,
  including those in MLX's cache of freed buffers; a lower one takes buffers out until the rest fits.
- `erase` is called when a buffer goes back to the system, as after `clear_cache`. The next `insert` may take its room.

So the limit is set once, when only permanent buffers are alive, and no room may be left below it: a KV buffer that fits
there would go in and out with every request. The relevant sum is that of `allocatedSize()`, which Python cannot read;
`wired_limit` is no less than that sum, and buffers of `filler_sizes` take up the difference. Not run on a Mac.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

WiredPolicy = Literal["auto", "never", "always"]
Version = tuple[int, ...]

_LEAST_BYTES = 4 * 10**9
"""Least weights that `auto` wires: smaller ones stay in memory by being used."""
_LEAST_FREE_BYTES = 8 * 10**9
_FREE_SHARE = 0.35
_SMALL_BYTES = 64 * 2**30
"""Beside wired weights 8 GB must stay free, and 35 % of the first 64 GiB of memory: wired pages cannot be reclaimed,
and 16 GB machines froze without that (vmlx-swift#421)."""
_WIRED_BY_MACOS_BYTES = 8 * 10**9
"""Bytes that macOS itself may have wired. More counts as taken."""
_FIRST_MACOS = 15
"""First macOS with residency sets."""
_PAGES_BY_ITSELF = 5
"""M5: wiring made no difference (macOS 26)."""
_MONOLITHIC = (27, (0, 32, 1))
"""macOS 27 with an older MLX than this: everything is in one residency set, which is wired over and over; 0.46 instead
of 13.2 tokens per second (mlx#4211)."""
_REFRESH = (26, (0, 32, 4))
_HEAP_BYTES = 1 << 20
"""MLX's heap of buffers below 256 bytes, a separate allocation in the sets (allocator.h)."""


@dataclass(frozen=True, slots=True)
class Panic:
    """A report of macOS that the GPU driver has panicked; `at` in seconds since the epoch."""

    file: str
    at: float

    def __str__(self) -> str:
        return f"{self.file}, {_local_time(self.at)}"


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that has wired memory."""

    pid: int
    model: str
    since: float

    def __str__(self) -> str:
        return f"process {self.pid} ({self.model}, since {_local_time(self.since)})"


@dataclass(frozen=True, slots=True, kw_only=True)
class WiringFacts:
    """All inputs of the decision. 0, "" and () mean unknown."""

    policy: WiredPolicy
    weights_bytes: int
    device: str = ""
    """Metal's name: "Apple M3 Ultra"."""
    memory_bytes: int = 0
    recommended_bytes: int = 0
    """Memory that macOS lets the GPU use; 0 without such a GPU."""
    macos: Version = ()
    mlx: Version = ()
    wired_now_bytes: int = 0
    """Wired bytes of the whole machine before anything is loaded."""
    has_several_models: bool = False
    panics: Sequence[Panic] = ()
    first_wired_at: float | None = None
    """Time when a server of this user first wired memory; None if none has."""
    left_by: Holder | None = None
    """The last process that wired, if it ended without unwiring."""
    holder: Holder | None = None
    """Another process that holds the lock."""
    lock_error: str = ""
    """Reason why the lock could not be acquired, in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wiring:
    """The decision. `wired_bytes` is 0 for nothing; `reason` is empty if nothing can be wired."""

    wired_bytes: int = 0
    reason: str = ""
    single_reason: str | None = None
    """Reason to compute one sequence at a time because of it."""


def decide_wiring(facts: WiringFacts) -> Wiring:
    """Wire the weights, unless one of these reasons applies; the first one counts."""
    if not facts.recommended_bytes:
        return Wiring()
    if facts.policy == "never":
        return Wiring(reason="memory.wired is never")
    reason = _impossible(facts) or (_pointless(facts) if facts.policy == "auto" else "")
    if reason:
        return Wiring(reason=reason)
    reason = _dangerous(facts)
    if reason:
        return Wiring(reason=reason, single_reason=f"nothing is wired: {reason}")
    if facts.holder is not None:
        return Wiring(reason=f"{facts.holder} has wired memory, and only one process per machine should; stop it first")
    if facts.lock_error:
        return Wiring(reason=facts.lock_error)
    return Wiring(wired_bytes=facts.weights_bytes, reason=_wired_reason(facts))


def _impossible(facts: WiringFacts) -> str:
    if facts.macos and facts.macos[0] < _FIRST_MACOS:
        return f"macOS {_dotted(facts.macos)} cannot keep the GPU's memory wired; {_FIRST_MACOS} can"
    if "Paravirtual" in facts.device:
        return "virtual machines have no residency sets"
    if facts.has_several_models:
        return (
            "several models are served, and wired memory must not change while one of them computes; "
            "a server of one model wires its weights"
        )
    if facts.weights_bytes + _HEAP_BYTES > facts.recommended_bytes:
        return (
            f"the weights take {_gb(facts.weights_bytes)}, macOS lets only {_gb(facts.recommended_bytes)} be wired; "
            "raise iogpu.wired_limit_mb"
        )
    return ""


def _pointless(facts: WiringFacts) -> str:
    """Return the reason why `auto` does not wire."""
    text = f"memory.wired is auto, and the weights take {_gb(facts.weights_bytes)}"
    if facts.weights_bytes < _LEAST_BYTES:
        return f"{text}: below {_gb(_LEAST_BYTES)} wiring gains nothing"
    generation = chip_generation(facts.device)
    if generation is not None and generation >= _PAGES_BY_ITSELF:
        return f"memory.wired is auto, and wiring gains nothing on an M{generation}"
    if not facts.macos:
        return "memory.wired is auto, and the macOS version is unknown"
    others = max(0, facts.wired_now_bytes - _WIRED_BY_MACOS_BYTES)
    free, wanted = facts.memory_bytes - others - facts.weights_bytes, free_beside(facts.memory_bytes)
    if free < wanted:
        already = f", {_gb(others)} are already wired" if others else ""
        return f"{text} of {_gb(facts.memory_bytes)}{already}: {_gb(wanted)} must stay free{_left_behind(facts)}"
    return ""


def _dangerous(facts: WiringFacts) -> str:
    macos, mlx = _MONOLITHIC
    if facts.macos and facts.mlx and facts.macos[0] >= macos and facts.mlx < mlx:
        return f"MLX {_dotted(facts.mlx)} on macOS {_dotted(facts.macos)} rewires everything repeatedly; update MLX"
    panic = newest_own_panic(facts.panics, facts.first_wired_at)
    if panic is None or facts.policy == "always":
        return ""
    return (
        f"the GPU driver panicked ({panic}) after Pippin wired memory on this machine; "
        "set memory.wired to always to wire again, or to never to batch unwired"
    )


def newest_own_panic(panics: Sequence[Panic], first_wired_at: float | None) -> Panic | None:
    """Return the last panic since memory was first wired here. Wiring did not cause earlier ones."""
    own = [panic for panic in panics if first_wired_at is not None and panic.at >= first_wired_at]
    return max(own, key=lambda panic: panic.at, default=None)


def free_beside(memory_bytes: int) -> int:
    """Return the bytes that must stay free beside wired weights."""
    return max(_LEAST_FREE_BYTES, int(_FREE_SHARE * min(memory_bytes, _SMALL_BYTES)))


def chip_generation(device: str) -> int | None:
    """Return 3 for "Apple M3 Ultra"; None for another name."""
    found = re.fullmatch(r"(?:Apple )?M(\d+)\b.*", device)
    return int(found[1]) if found else None


def parse_version(text: str) -> Version:
    """Return `26.5.2` or `0.32.4.dev1` as numbers, as many as there are at the front."""
    found = re.match(r"\d+(?:\.\d+)*", text.strip())
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def residency_environment(macos: Version, mlx: Version) -> dict[str, str]:
    """Return the variables that MLX must find in the environment before it is imported.

    macOS 26 unwires a set that was not used for about a second (llama.cpp#17766). From 0.32.4 on, MLX requests its sets
    again at this interval; by default it does not. The name is that in the wheel for macOS.
    """
    first_macos, first_mlx = _REFRESH
    is_wanted = bool(macos) and macos[0] >= first_macos and mlx >= first_mlx
    return {"MLX_METAL_RESIDENCY_REFRESH_INTERVAL_MS": "1000"} if is_wanted else {}


# --- the limit, to the byte


def slack_bytes(num_arrays: int, page_bytes: int) -> int:
    """Return the most bytes that Metal may allocate beyond MLX's active ones: a page per array, and MLX's heap."""
    return _HEAP_BYTES + num_arrays * page_bytes


def wired_limit(active_bytes: int, num_arrays: int, page_bytes: int, recommended_bytes: int) -> int:
    """Return the limit in which all active memory fits: MLX raises ValueError beyond what macOS recommends."""
    return min(active_bytes + slack_bytes(num_arrays, page_bytes), recommended_bytes)


def filler_sizes(slack: int, page_bytes: int) -> list[int]:
    """Return sizes of buffers that, allocated in this order, fill any room of up to `slack` bytes to less than a page.

    Each goes in if it fits and otherwise stays outside: halves of halves, like the bits of a number.
    """
    size = page_bytes
    while 2 * size <= slack:
        size *= 2
    sizes = []
    while size >= page_bytes:
        sizes.append(size)
        size //= 2
    return sizes


# --- words


def _wired_reason(facts: WiringFacts) -> str:
    text = f"memory.wired is {facts.policy}: the weights are wired once they are loaded, KV caches are not"
    return f"{text}{_left_behind(facts)}"


def _left_behind(facts: WiringFacts) -> str:
    if facts.left_by is None:
        return ""
    return f"; {facts.left_by} ended without unwiring; macOS may hold its memory until the machine restarts"


def _dotted(version: Version) -> str:
    return ".".join(map(str, version))


def _local_time(at: float) -> str:
    return datetime.fromtimestamp(at).astimezone().strftime("%Y-%m-%d %H:%M")


def _gb(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:,.1f} GB"
