"""The limits that MLX gets, from what devices say of themselves. No MLX."""

from __future__ import annotations

import json
import mmap
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mlx_backend.api.interface import MemoryConfig
from mlx_backend.planning.limits import DeviceFacts, Limits, decide_limits, for_process, raise_command
from mlx_backend.planning.wiring import filler_sizes, slack_bytes

GIB = 2**30
M3_ULTRA = DeviceFacts(name="Apple M3 Ultra", memory_bytes=512 * GIB, recommended_bytes=384 * GIB)
R1_BYTES = 377_600_000_000


def decide(weights: int = R1_BYTES, **more: Any) -> Limits:
    return decide_limits(more.pop("cache", None), limit_bytes=more.pop("limit", 400 * 10**9), weights_bytes=weights)


def test_the_buffer_cache_has_a_share_of_what_the_weights_leave() -> None:
    assert decide(weights=399 * 10**9).cache_bytes == 250_000_000
    assert decide(weights=10**9).cache_bytes == 4 * 10**9
    assert decide(cache=0).cache_bytes == 0
    assert decide(weights=500 * 10**9).cache_bytes == 0


def test_the_command_that_raises_the_limit_is_told_where_it_would_help() -> None:
    assert raise_command(M3_ULTRA, R1_BYTES) == f"sudo sysctl iogpu.wired_limit_mb={512 * 1024 * 9 // 10}"
    assert raise_command(M3_ULTRA, 600 * 10**9) is None
    small = DeviceFacts(memory_bytes=16 * GIB, recommended_bytes=int(10.67 * GIB))
    assert raise_command(small, 10**9) is None
    assert raise_command(DeviceFacts(), 10**9) is None


@pytest.mark.parametrize("field", ["limit_gb", "reserve_gb", "cache_gb"])
def test_gigabytes_are_billions_of_bytes(field: str) -> None:
    given: dict[str, Any] = {field: 1.5}
    assert getattr(MemoryConfig(**given), field.replace("_gb", "_bytes")) == 1_500_000_000
    assert getattr(MemoryConfig(), field.replace("_gb", "_bytes")) is None


@pytest.mark.mlx
def test_what_a_device_says_is_read_as_it_was_recorded() -> None:
    from mlx_backend.runners.device import read_facts

    recorded = json.loads((Path(__file__).parent / "device_info.json").read_text())
    expected = DeviceFacts(name="Apple M3 Ultra", memory_bytes=549_755_813_888, recommended_bytes=412_316_860_416)
    for nothing in ("0\n", "", "sysctl: unknown oid"):
        assert read_facts(recorded["metal"], nothing.strip) == expected
    raised = read_facts(recorded["metal"], lambda: "471859\n")
    assert raised == replace(expected, wired_limit_mb=471_859)
    assert raised.limit_basis == "the GPU's limit, of macOS, iogpu.wired_limit_mb=471859"
    assert read_facts(recorded["cpu"]) == DeviceFacts(name=recorded["cpu"]["device_name"])
    assert read_facts().recommended_bytes == 0 or read_facts().memory_bytes > 0


@pytest.mark.mlx
def test_limits_are_told_and_taken_back() -> None:
    import mlx.core as mx

    from mlx_backend.runners import device

    before = mx.get_memory_limit()
    try:
        device.apply_limits(decide(weights=10**9))
        assert mx.get_memory_limit() == 400 * 10**9
    finally:
        mx.set_memory_limit(before)
    device.release()


@pytest.mark.mlx
def test_of_two_models_the_larger_limit_holds_until_both_are_released(monkeypatch: pytest.MonkeyPatch) -> None:
    import mlx.core as mx

    from mlx_backend.runners import device

    told: list[int] = []
    monkeypatch.setattr(mx, "set_memory_limit", told.append)
    device.apply_limits(Limits(memory_bytes=9, cache_bytes=10**9), "a")
    device.apply_limits(Limits(memory_bytes=5, cache_bytes=10**8), "b")
    device.release("a")
    device.apply_limits(Limits(memory_bytes=4, cache_bytes=10**8), "c")
    device.release("b")
    device.release("c")
    assert told == [9, 9, 5]


def test_of_several_models_each_is_told_the_process_limit() -> None:
    limits = for_process(Limits(memory_bytes=100, cache_bytes=7), 350 * 10**9)
    assert limits == Limits(memory_bytes=350 * 10**9, cache_bytes=7)


# --- wiring: the seam to MLX


@pytest.mark.mlx
def test_the_limit_is_set_when_nothing_computes_and_filled_up(monkeypatch: pytest.MonkeyPatch) -> None:
    import mlx.core as mx

    from mlx_backend.runners import device

    calls: list[tuple[str, int]] = []
    for name in ("synchronize", "clear_cache"):
        monkeypatch.setattr(mx, name, lambda name=name: calls.append((name, 0)))
    monkeypatch.setattr(mx, "set_wired_limit", lambda limit: calls.append(("set_wired_limit", limit)))
    monkeypatch.setattr(mx, "get_active_memory", lambda: 10**9)
    limit = device.wire(10, 10**12)
    assert [name for name, _ in calls] == ["synchronize", "clear_cache", "set_wired_limit"]
    assert limit == calls[-1][1] == 10**9 + slack_bytes(10, mmap.PAGESIZE)
    assert [filler.nbytes for filler in device._fillers] == filler_sizes(limit - 10**9, mmap.PAGESIZE)
    calls.clear()
    device.unwire()
    assert calls == [("synchronize", 0), ("set_wired_limit", 0)]
    assert not device._fillers
    assert device.mlx_version() >= (0, 32)
