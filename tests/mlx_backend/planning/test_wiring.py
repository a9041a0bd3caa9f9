"""Whether weights are wired, from recorded facts; and that with the limit chosen no later buffer enters a set."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.large_wiring import PAGE, Allocator, ResidencySets, measure, serve, wire_active, wire_now
from mlx_backend.planning.wiring import (
    Holder,
    Panic,
    WiringFacts,
    chip_generation,
    decide_wiring,
    filler_sizes,
    free_beside,
    newest_own_panic,
    parse_version,
    residency_environment,
    wired_limit,
)

GIB = 2**30
R1 = WiringFacts(
    policy="auto",
    weights_bytes=377_600_000_000,
    device="Apple M3 Ultra",
    memory_bytes=512 * GIB,
    recommended_bytes=412_316_860_416,
    macos=(26, 5, 2),
    mlx=(0, 32, 4),
    wired_now_bytes=5 * 10**9,
)
PANIC = Panic("panic-full-2026-04-20-101500.0002.panic", 1_776_700_000.0)
HOLDER = Holder(4711, "other-model", 1_776_700_000.0)
AFTER_A_PANIC = replace(R1, panics=[PANIC], first_wired_at=PANIC.at - 60)


def test_the_flagship_is_wired_and_batched() -> None:
    wiring = decide_wiring(R1)
    assert (wiring.wired_bytes, wiring.single_reason) == (R1.weights_bytes, None)
    assert "KV caches are not" in wiring.reason


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"policy": "never"}, "memory.wired is never"),
        ({"macos": (14, 6)}, "macOS 14.6 cannot"),
        ({"macos": ()}, "macOS version is unknown"),
        ({"device": "Apple Paravirtual device"}, "virtual machine"),
        ({"device": "Apple M5 Max"}, "wiring gains nothing on an M5"),
        ({"has_several_models": True}, "several models"),
        ({"weights_bytes": 420 * 10**9}, "raise iogpu.wired_limit_mb"),
        ({"weights_bytes": 3 * 10**9}, "below 4.0 GB wiring gains nothing"),
        ({"wired_now_bytes": 200 * 10**9}, "192.0 GB are already wired"),
        ({"holder": HOLDER}, "process 4711 (other-model, since 2026-04-20"),
        ({"lock_error": "the lock cannot be taken: no room"}, "no room"),
    ],
)
def test_what_is_not_wired_is_batched_all_the_same_and_says_why(changed: dict[str, Any], said: str) -> None:
    wiring = decide_wiring(replace(R1, **changed))
    assert (wiring.wired_bytes, wiring.single_reason) == (0, None)
    assert said in wiring.reason


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        (AFTER_A_PANIC, PANIC.file),
        (replace(AFTER_A_PANIC, holder=HOLDER), PANIC.file),
        (replace(R1, macos=(27,), mlx=(0, 32, 0)), "MLX 0.32.0 on macOS 27"),
        (replace(R1, policy="always", macos=(27, 0), mlx=(0, 31)), "update MLX"),
    ],
)
def test_after_a_panic_and_with_versions_that_must_not_wire_one_sequence_is_computed(
    facts: WiringFacts, said: str
) -> None:
    wiring = decide_wiring(facts)
    assert wiring.wired_bytes == 0
    assert said in wiring.reason
    assert said in (wiring.single_reason or "")


@pytest.mark.parametrize("macos", [(15, 7, 4), (26, 3), (26, 5, 2), (27, 0)])
def test_versions_that_wire(macos: tuple[int, ...]) -> None:
    assert decide_wiring(replace(R1, macos=macos, mlx=(0, 32, 1))).wired_bytes


def test_always_overrules_what_auto_weighs_and_nothing_else() -> None:
    for changed in ({"weights_bytes": 10**9}, {"device": "Apple M5 Max"}, {"wired_now_bytes": 10**12}, {"macos": ()}):
        assert decide_wiring(replace(R1, policy="always", **changed)).wired_bytes
    assert decide_wiring(replace(AFTER_A_PANIC, policy="always")).wired_bytes
    for kept in ({"holder": HOLDER}, {"has_several_models": True}, {"weights_bytes": 10**12}, {"lock_error": "no"}):
        assert not decide_wiring(replace(R1, policy="always", **kept)).wired_bytes


def test_a_panic_before_anything_was_wired_here_does_not_count() -> None:
    assert decide_wiring(replace(R1, panics=[PANIC])).wired_bytes
    assert decide_wiring(replace(R1, panics=[PANIC], first_wired_at=PANIC.at + 1)).wired_bytes
    later = Panic("later.panic", PANIC.at + 100)
    assert newest_own_panic([PANIC, later, PANIC], PANIC.at) == later


def test_a_process_that_did_not_unwire_is_mentioned() -> None:
    assert f"{HOLDER} ended without unwiring" in decide_wiring(replace(R1, left_by=HOLDER)).reason


@pytest.mark.parametrize(
    ("memory_gib", "weights_gb", "is_wired"),
    [(16, 5, True), (16, 9.2, False), (36, 24, True), (36, 26, False), (64, 44, True), (128, 103, True)],
)
def test_small_macs_keep_more_free(memory_gib: int, weights_gb: float, is_wired: bool) -> None:
    memory = memory_gib * GIB
    facts = replace(R1, memory_bytes=memory, recommended_bytes=int(0.84 * memory), weights_bytes=int(weights_gb * 1e9))
    assert bool(decide_wiring(facts).wired_bytes) is is_wired


@given(
    facts=st.builds(
        WiringFacts,
        policy=st.sampled_from(["auto", "never", "always"]),
        weights_bytes=st.integers(0, 10**12),
        device=st.sampled_from(["", "Apple M1", "Apple M3 Ultra", "Apple M5", "Apple Paravirtual device", "H100"]),
        memory_bytes=st.integers(0, 10**12),
        recommended_bytes=st.one_of(st.just(0), st.integers(0, 10**12)),
        macos=st.sampled_from([(), (14, 6), (15,), (26, 4), (27, 0, 1)]),
        mlx=st.sampled_from([(), (0, 31, 9), (0, 32, 1), (0, 32, 4)]),
        wired_now_bytes=st.integers(0, 10**12),
        has_several_models=st.booleans(),
        panics=st.lists(st.builds(Panic, st.just("p"), st.floats(0, 100)), max_size=3),
        first_wired_at=st.one_of(st.none(), st.floats(0, 100)),
        left_by=st.sampled_from([None, HOLDER]),
        holder=st.sampled_from([None, HOLDER]),
        lock_error=st.sampled_from(["", "no"]),
    )
)
def test_whatever_the_facts(facts: WiringFacts) -> None:
    wiring = decide_wiring(facts)
    assert wiring.wired_bytes in (0, facts.weights_bytes)
    assert bool(wiring.reason) is bool(facts.recommended_bytes)
    if wiring.wired_bytes:
        assert facts.policy != "never" and facts.holder is None and not facts.lock_error
        assert not facts.has_several_models and wiring.single_reason is None
        assert facts.weights_bytes <= facts.recommended_bytes
    if wiring.wired_bytes and facts.policy == "auto":
        assert newest_own_panic(facts.panics, facts.first_wired_at) is None
        assert facts.memory_bytes - facts.weights_bytes >= free_beside(facts.memory_bytes) >= 8 * 10**9
    if wiring.single_reason is not None:
        assert not wiring.wired_bytes and wiring.reason in wiring.single_reason


# --- names and versions


def test_versions_and_chips() -> None:
    assert parse_version("26.5.2") == (26, 5, 2)
    assert parse_version("0.32.4.dev20261101+abc") == (0, 32, 4)
    assert parse_version("") == parse_version("no version") == ()
    assert [chip_generation(name) for name in ("Apple M3 Ultra", "M12", "Apple M1", "NVIDIA M4x", "")] == [
        3,
        12,
        1,
        None,
        None,
    ]


@pytest.mark.parametrize(
    ("macos", "mlx", "is_set"),
    [((26, 1), (0, 32, 4), True), ((15, 6), (0, 32, 4), False), ((27,), (0, 32, 3), False), ((), (1,), False)],
)
def test_the_sets_are_requested_again_where_macos_forgets_them(
    macos: tuple[int, ...], mlx: tuple[int, ...], is_set: bool
) -> None:
    expected = {"MLX_METAL_RESIDENCY_REFRESH_INTERVAL_MS": "1000"} if is_set else {}
    assert residency_environment(macos, mlx) == expected


# --- the limit


@given(slack=st.integers(0, 1 << 28), room=st.floats(0, 1))
def test_fillers_leave_less_than_a_page_of_any_room(slack: int, room: float) -> None:
    left = int(room * slack)
    for size in filler_sizes(slack, PAGE):
        left -= size if size <= left else 0
    assert 0 <= left < PAGE or slack < PAGE
    assert sum(filler_sizes(slack, PAGE)) < 2 * slack or slack < PAGE


def test_mlx_is_never_asked_to_wire_more_than_macos_recommends() -> None:
    assert wired_limit(10**9, 100, PAGE, 10**9 + 5) == 10**9 + 5


SIZES = st.one_of(st.integers(1, 255), st.integers(256, PAGE), st.integers(PAGE, 1 << 30))


@given(
    weights=st.lists(SIZES, min_size=1, max_size=60),
    kv_bytes=st.lists(SIZES, min_size=1, max_size=12),
    freed=st.lists(SIZES, max_size=6),
    seed=st.integers(0, 10**6),
)
def test_all_weights_are_wired_and_no_later_buffer_is(
    weights: list[int], kv_bytes: list[int], freed: list[int], seed: int
) -> None:
    sets = ResidencySets(random.Random(seed))
    allocator = Allocator(sets)
    probes = [allocator.malloc(size) for size in freed]
    buffers = [allocator.malloc(size) for size in weights]
    for probe in probes:
        allocator.free(probe)
    wire_now(allocator, len(weights))
    assert {buffer for buffer in buffers if buffer in sets.tracked} <= sets.inside
    before, num_in = set(sets.inside), sets.num_in
    serve(allocator, kv_bytes, 4)
    assert (sets.inside, sets.num_in, sets.num_out) == (before, num_in, 0)
    sets.resize(0)
    assert not sets.inside and sets.wired == 0


def test_a_limit_of_the_active_bytes_alone_lets_kv_in() -> None:
    """The heap is not in what MLX counts: a weight stays outside, and KV caches use its room."""
    *_, num_in, num_out = measure("active", wire_active)
    assert int(num_in.replace(",", "")) > 1000 and int(num_out.replace(",", "")) > 1000
    assert measure("now", wire_now)[-2:] == ("0", "0")
