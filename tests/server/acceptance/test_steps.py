"""The table of steps: risky ones last, what is chosen, sent and left out."""

from __future__ import annotations

import pytest

from mlx_backend.acceptance.__main__ import STEPS as FUNCTIONS
from mlx_backend.acceptance.checks import Options
from server.acceptance.steps import STEPS, KitOptions, UnknownStep, choose, judge, sent_options, skip_reason, to_do

QUICK = KitOptions(model="m")


def names(*only: str, soak_s: float = 0.0) -> list[str]:
    return [step.name for step in choose(KitOptions(model="m", only=only, soak_s=soak_s))]


def test_what_may_end_the_machine_comes_last_and_wires_nothing_before() -> None:
    risks = [step.is_risky for step in STEPS]
    assert risks == sorted(risks)
    assert all(step.wired == "never" for step in STEPS if not step.is_risky)
    assert STEPS[-1].name == "soak"


def test_every_step_is_the_kits_own_or_a_function_that_there_is() -> None:
    assert {step.function for step in STEPS} - {""} == set(FUNCTIONS)
    assert [step.name for step in STEPS if not step.function] == ["facts", "serve"]


def test_a_soak_is_asked_for() -> None:
    assert "soak" not in names()
    assert names(soak_s=60.0)[-1] == "soak"
    assert sent_options(STEPS[-1], KitOptions(model="m", soak_s=60.0))["soak_s"] == 60.0
    assert sent_options(STEPS[1], KitOptions(model="m", soak_s=60.0))["soak_s"] == 0.0


def test_steps_by_name() -> None:
    assert names("batch", "load") == ["load", "batch"]
    assert names("wired_decode") == ["device", "wired_decode"]  # it has to be known whether there is Metal
    with pytest.raises(UnknownStep, match="no step 'x'; there are facts, device"):
        names("x")


@pytest.mark.parametrize("is_quick", [True, False])
def test_what_is_sent_is_what_a_step_reads(is_quick: bool) -> None:
    for step in STEPS:
        options = Options.read(sent_options(step, KitOptions(model="m", is_quick=is_quick)))
        assert (options.is_quick, options.wired) == (is_quick, step.wired)


def test_without_metal_the_steps_of_metal_are_left_out() -> None:
    skipped = {step.name for step in STEPS if skip_reason(step, has_metal=False)}
    assert skipped == {"buffers_default", "buffers_large", "wired_decode", "out_of_memory"}
    assert not [step for step in STEPS if skip_reason(step, has_metal=True)]


def test_judgement() -> None:
    assert judge({"skipped": "no"}) == "skipped"
    assert judge({"figures": {}}) == "passed"
    assert judge({"checks": [{"is_kept": True}, {"is_kept": False}]}) == "failed"


def test_what_is_done_is_done_again_only_by_name() -> None:
    steps = choose(QUICK)
    done = {"facts": {"status": "passed"}, "device": {"status": "interrupted"}}
    assert to_do(steps, done, ())[0].name == "parity"
    assert "device" in [step.name for step in to_do(steps, done, ("device",))]
