from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_backend.planning.machines import Machine, find_machine, load_machines
from mlx_backend.planning.speed import (
    Estimate,
    Residual,
    decode_estimate,
    load_anchors,
    prefill_estimate,
    residuals,
)

M3_ULTRA = find_machine("m3-ultra-512")
R1 = next(anchor.model for anchor in load_anchors() if anchor.id == "v3-4k")
R1_CLASS = {"v3-4k", "v3-8k", "v3-16k", "r1-llama.cpp", "r1-ollama"}

machines = st.sampled_from(load_machines())
contexts = st.integers(0, 200_000)


def decode_r1(
    machine: Machine = M3_ULTRA,
    context_tokens: int = 4096,
    num_sequences: int = 1,
    routed_bytes: float | None = None,
    routed_share: float = 0.0,
) -> Estimate:
    found = decode_estimate(
        R1.active_bytes,
        context_tokens * R1.kv_bytes_per_token,
        machine,
        R1.num_layers,
        R1.is_moe,
        num_sequences,
        is_latent=R1.is_latent,
        routed_bytes=routed_bytes,
        routed_share=routed_share,
    )
    assert found is not None
    return found


def prefill_r1(machine: Machine = M3_ULTRA, context_tokens: int = 4096) -> Estimate:
    found = prefill_estimate(
        R1.active_parameters, context_tokens, machine, is_moe=True, attention_width=R1.attention_width
    )
    assert found is not None
    return found


@pytest.mark.parametrize("anchor", load_anchors(), ids=lambda anchor: anchor.id)
def test_an_anchor_is_whole(anchor) -> None:
    assert anchor.source and anchor.stack and anchor.model.basis
    assert anchor.decode_tokens_per_s or anchor.prefill_tokens_per_s
    assert anchor.model.active_bytes <= anchor.model.weights_bytes
    # Bits per active parameter: a slip of a factor in a figure shows here.
    assert 4 < 8 * anchor.model.active_bytes / anchor.model.active_parameters <= 16.1
    assert anchor.peak_bytes is None or anchor.peak_bytes < anchor.machine.memory_bytes


def test_every_measurement_has_a_residual() -> None:
    measured = [
        (anchor.id, value)
        for value_of in ("decode_tokens_per_s", "prefill_tokens_per_s")
        for anchor in load_anchors()
        if (value := getattr(anchor, value_of)) is not None
    ]
    assert [(row.name, row.measured) for row in residuals()] == measured


@pytest.mark.parametrize(
    "row",
    [row for row in residuals() if row.quantity == "decode" or row.name in R1_CLASS],
    ids=lambda row: f"{row.name}-{row.quantity}",
)
def test_published_decode_speeds_and_all_of_r1_class_are_within_15_percent(row: Residual) -> None:
    assert abs(row.error) <= 0.15


def test_all_anchors_are_near_and_without_a_lean() -> None:
    errors = [row.error for row in residuals()]
    assert sorted(map(abs, errors))[int(0.8 * len(errors))] < 0.15
    assert abs(sum(errors) / len(errors)) < 0.05


def test_the_public_estimate_is_what_the_residuals_compare() -> None:
    by_name = {(row.name, row.quantity): row.predicted for row in residuals()}
    assert decode_r1(context_tokens=8192).value == pytest.approx(by_name["v3-8k", "decode"])
    assert prefill_r1(context_tokens=8192).value == pytest.approx(by_name["v3-8k", "prefill"])


def test_the_margin_holds_the_anchors_of_the_kind() -> None:
    for row in residuals():
        if row.generation == 3 and row.is_moe:
            estimate = decode_r1() if row.quantity == "decode" else prefill_r1()
            ratio = row.measured / row.predicted
            assert estimate.low <= estimate.value * ratio * 1.000001
            assert estimate.high >= estimate.value * ratio * 0.999999


@given(machines, contexts)
def test_an_estimate_is_within_its_margin(machine: Machine, context_tokens: int) -> None:
    for estimate in (decode_r1(machine, context_tokens), prefill_r1(machine, context_tokens)):
        assert 0 < estimate.low <= estimate.value <= estimate.high


@given(machines, contexts, contexts)
def test_a_longer_context_is_never_faster(machine: Machine, one: int, other: int) -> None:
    short, long = sorted((one, other))
    assert decode_r1(machine, long).value <= decode_r1(machine, short).value
    assert prefill_r1(machine, long).value <= prefill_r1(machine, short).value


@given(machines, st.integers(1, 2 * 10**12), st.booleans())
def test_more_bandwidth_is_never_slower(machine: Machine, more: int, is_moe: bool) -> None:
    faster = replace(machine, bandwidth=machine.bandwidth + more)
    pair = [decode_estimate(5e9, 1e9, each, 40, is_moe) for each in (machine, faster)]
    assert pair[0] is not None and pair[1] is not None
    assert pair[0].value <= pair[1].value


@given(st.integers(1, 63), st.booleans())
def test_another_sequence_slows_each_and_adds_to_the_sum(num_sequences: int, is_moe: bool) -> None:
    fewer = decode_estimate(5e9, 1e8, M3_ULTRA, 40, is_moe, num_sequences)
    more = decode_estimate(5e9, 1e8, M3_ULTRA, 40, is_moe, num_sequences + 1)
    assert fewer is not None and more is not None
    assert more.value < fewer.value
    assert more.value * (num_sequences + 1) > fewer.value * num_sequences


def test_sequences_share_experts_and_all_the_rest() -> None:
    alone = decode_r1().value
    nothing_shared = decode_r1(num_sequences=8).value
    few_shared = decode_r1(num_sequences=8, routed_bytes=11.5e9, routed_share=8 / 256).value
    all_shared = decode_r1(num_sequences=8, routed_bytes=11.5e9, routed_share=1.0).value
    assert nothing_shared < few_shared < all_shared < alone


def test_what_no_anchor_measures_has_a_wider_margin() -> None:
    def width(estimate: Estimate) -> float:
        return (estimate.high - estimate.low) / estimate.value

    assert width(decode_r1(find_machine("m1-max-64"))) > width(decode_r1())
    assert width(decode_r1(num_sequences=4)) > width(decode_r1())
    assert width(prefill_r1(find_machine("m5-max-128"))) > width(prefill_r1(find_machine("m4-max-128")))


def test_an_unknown_machine_has_no_estimate() -> None:
    unknown = replace(M3_ULTRA, chip="", bandwidth=0, gpu_cores=0)
    assert decode_estimate(1e9, 0, unknown, 10, False) is None
    assert prefill_estimate(1e9, 1000, unknown, is_moe=False, attention_width=1) is None


def test_no_sequence_has_no_speed() -> None:
    with pytest.raises(ValueError, match="num_sequences"):
        decode_estimate(1e9, 0, M3_ULTRA, 10, False, 0)
