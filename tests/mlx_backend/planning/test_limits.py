"""What MLX is told of memory, from what devices say of themselves. No MLX."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mlx_backend.api.interface import MemoryConfig
from mlx_backend.planning.limits import DeviceFacts, Limits, decide_limits, for_process, raise_command

GIB = 2**30
M3_ULTRA = DeviceFacts(name="Apple M3 Ultra", memory_bytes=512 * GIB, recommended_bytes=384 * GIB)
R1_BYTES = 377_600_000_000


def decide(policy: Any = "auto", weights: int = R1_BYTES, facts: DeviceFacts = M3_ULTRA, **more: Any) -> Any:
    return decide_limits(
        facts, policy, more.pop("cache", None), limit_bytes=more.pop("limit", 400 * 10**9), weights_bytes=weights
    )


def test_a_model_that_nearly_fills_the_machine_is_wired_and_then_alone() -> None:
    limits = decide()
    assert limits.wired_bytes == 400 * 10**9
    assert "69%" in limits.wired_reason
    assert "mlx#3186" in limits.single_reason
    assert limits.memory_bytes == 400 * 10**9


def test_a_smaller_model_is_not_wired() -> None:
    limits = decide(weights=300 * 10**9)
    assert (limits.wired_bytes, limits.single_reason) == (0, None)
    assert "55%" in limits.wired_reason


@pytest.mark.parametrize(("policy", "wired"), [("never", 0), ("always", 400 * 10**9)])
def test_who_says_so_decides_and_computes_several_at_a_time(policy: str, wired: int) -> None:
    for weights in (R1_BYTES, 10**9):
        limits = decide(policy, weights)
        assert (limits.wired_bytes, limits.single_reason) == (wired, None)
        assert limits.wired_reason == f"memory.wired is {policy}"


def test_mlx_is_never_asked_to_wire_more_than_macos_allows() -> None:
    assert decide("always", limit=500 * 10**9).wired_bytes == 384 * GIB  # it raises ValueError beyond


def test_nothing_is_wired_where_nothing_can_be() -> None:
    for policy in ("auto", "never", "always"):
        limits = decide(policy, facts=DeviceFacts())
        assert (limits.wired_bytes, limits.wired_reason, limits.single_reason) == (0, "", None)


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
        device.apply_limits(decide(weights=10**9, facts=device.read_facts()))
        assert mx.get_memory_limit() == 400 * 10**9
    finally:
        mx.set_memory_limit(before)
    device.release()


@pytest.mark.mlx
def test_of_two_models_the_larger_limit_holds_until_both_are_released(monkeypatch: pytest.MonkeyPatch) -> None:
    import mlx.core as mx

    from mlx_backend.runners import device

    told: list[int] = []
    monkeypatch.setattr(mx, "set_wired_limit", told.append)
    before = mx.get_memory_limit()
    try:
        device.apply_limits(Limits(memory_bytes=before, cache_bytes=10**9, wired_bytes=5), "a")
        device.apply_limits(Limits(memory_bytes=before // 2, cache_bytes=10**8), "b")
        assert mx.get_memory_limit() == before
    finally:
        mx.set_memory_limit(before)
        device.release("b")
        device.release("a")
    assert told == [5, 5, 5, 0]


def test_of_several_models_each_is_told_the_process_limit() -> None:
    facts = DeviceFacts(memory_bytes=512 * 10**9, recommended_bytes=400 * 10**9)
    mine = Limits(memory_bytes=100, cache_bytes=7, wired_bytes=100, wired_reason="because")
    assert for_process(mine, facts, 350 * 10**9) == Limits(
        memory_bytes=350 * 10**9, cache_bytes=7, wired_bytes=350 * 10**9, wired_reason="because"
    )
    assert for_process(Limits(memory_bytes=100, cache_bytes=7), facts, 200).wired_bytes == 0


def test_several_models_wire_no_more_than_macos_allows() -> None:
    facts = DeviceFacts(memory_bytes=512 * 10**9, recommended_bytes=400 * 10**9)
    mine = Limits(memory_bytes=100, cache_bytes=7, wired_bytes=100)
    assert for_process(mine, facts, 450 * 10**9).wired_bytes == 400 * 10**9
