"""The shipped profiles: their settings are valid, and the planner agrees that they fit where they say they do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mlx_backend.api.interface import KVCacheConfig
from mlx_backend.factory import read_shape
from mlx_backend.planning.machines import find_machine, load_machines, this_machine
from mlx_backend.planning.planner import build_plan
from server.config import Config, resolve
from server.profiles import PROFILES, Profile, find_profile, settings_file
from server.profiles.planning import limit_bytes, plan_profile, ranked, share_of
from tests.server.test_plan import run

pytestmark = pytest.mark.mlx

ROOT = Path(__file__).parents[2]
PARAMETERS = {
    "deepseek-r1-4bit": 671.0e9,
    "deepseek-r1-3bit": 671.0e9,
    "qwen3-235b-4bit": 235.1e9,
    "qwen3-235b-3bit": 235.1e9,
    "gpt-oss-120b-mxfp4": 116.8e9,
    "qwen3-8b-4bit": 8.19e9,
}
"""As published."""

each_profile = pytest.mark.parametrize("profile", PROFILES, ids=lambda profile: profile.name)


def named(name: str) -> Profile:
    return next(profile for profile in PROFILES if profile.name == name)


def settings(profile: Profile) -> Config:
    return resolve(ROOT / profile.config_file, {}, {}).config


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().out.split())


# --- the table, the settings and the models


@each_profile
def test_settings_are_valid_and_agree_with_the_table(profile: Profile) -> None:
    config = settings(profile)
    assert config.model is not None and config.model.count("/") == 1
    assert config.context.limit is not None
    assert (config.kv_cache.bits, config.memory.limit_gb) == (profile.kv_bits, None)


def test_names_are_their_own_and_every_file_belongs_to_a_profile() -> None:
    assert len({profile.name for profile in PROFILES}) == len(PROFILES)
    files = {path.stem for path in (ROOT / "configs").glob("*.yaml")} - {"default", "mock"}
    assert files == {profile.name for profile in PROFILES}
    models = {path.stem for path in (ROOT / "server" / "profiles").glob("*.json")}
    assert models == {profile.model for profile in PROFILES} == set(PARAMETERS)


@pytest.mark.parametrize("model", PARAMETERS)
def test_models_have_as_many_parameters_as_published(model: str) -> None:
    file = next(profile.model_file for profile in PROFILES if profile.model == model)
    shape, _ = read_shape(str(file))
    assert shape.num_parameters == pytest.approx(PARAMETERS[model], rel=0.005)


def test_settings_are_found_by_their_name_unless_a_file_is_called_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for profile in PROFILES:
        assert settings_file(Path(profile.name)).read_bytes() == (ROOT / profile.config_file).read_bytes()
    assert resolve(None, {"PIPPIN_CONFIG": "laptop-16"}, {}).config.context.limit == 16384
    for name in ("laptop-17", "laptop-16.yaml", "./x/laptop-16", "/laptop-16", "../configs/laptop-16"):
        assert settings_file(Path(name)) == Path(name)
    (tmp_path / "laptop-16").touch()
    assert settings_file(Path("laptop-16")) == Path("laptop-16")


def test_a_profile_is_found_by_its_name_unless_a_file_is_called_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_profile("laptop-16") is named("laptop-16")
    assert find_profile("laptop-17") is None
    (tmp_path / "laptop-16").mkdir()
    assert find_profile("laptop-16") is None


# --- they fit


@each_profile
def test_what_the_settings_promise_fits_the_machine(profile: Profile) -> None:
    config = settings(profile)
    users = (1, config.scheduler.max_num_seqs)
    plan = plan_profile(profile, find_machine(profile.machine), users=users, context=config.context.limit)
    assert [row.memory.context for row in plan.rows if row.memory] == [config.context.limit] * 2
    assert plan.kv_cache == config.kv_cache
    assert plan.budget_bytes == limit_bytes(profile, plan.machine) <= 0.9 * plan.machine.memory_bytes


@each_profile
def test_the_comment_has_the_planners_weights(profile: Profile) -> None:
    plan = plan_profile(profile, find_machine(profile.machine))
    comment = (ROOT / profile.config_file).read_text(encoding="utf-8")
    assert f"weights {plan.shape.weights_bytes / 1e9:.1f} GB" in comment
    assert f"{plan.budget_bytes / 1e9:.1f} GB" in comment
    assert f"pippin plan {profile.name}\n" in comment
    raised = profile.wired_limit_mb
    assert ("sudo sysctl" in comment) == (raised is not None)
    assert raised is None or f"iogpu.wired_limit_mb={raised} " in comment


@pytest.mark.parametrize("profile", [p for p in PROFILES if p.wired_limit_mb], ids=lambda profile: profile.name)
def test_a_limit_is_raised_only_where_the_settings_need_it(profile: Profile) -> None:
    machine, config = find_machine(profile.machine), settings(profile)
    plan = plan_profile(profile, machine, budget_bytes=machine.gpu_limit_bytes, context=config.context.limit)
    assert not plan.fits


def test_r1_on_one_m3_ultra() -> None:
    profile = named("r1-m3-ultra-512")
    plan = plan_profile(profile, find_machine(profile.machine))
    assert plan.shape.weights_bytes == 377_606_822_912
    assert plan.budget_bytes == plan.machine.gpu_limit_bytes  # nothing is raised
    assert plan.rows[0].memory is not None and plan.rows[0].memory.context == plan.shape.context_length


# --- R1 on Macs with 192 GB


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_one_192_gb_mac_does_not_hold_r1(bits: int) -> None:
    machine = find_machine("m2-ultra-192")
    shape, caches = read_shape(str(named("r1-m3-ultra-512").model_file), bits)
    for budget in (machine.gpu_limit_bytes, machine.memory_bytes):  # not even if macOS needed nothing
        plan = build_plan(shape, caches, machine, KVCacheConfig(), users=(1,), budget_bytes=budget)
        assert not plan.fits


@pytest.mark.parametrize(("weights", "fits"), [((3, 64), True), ((3, 32), True), ((4, 64), False), ((8, 64), False)])
def test_two_192_gb_macs_hold_r1_in_3_bits_and_not_in_4(weights: tuple[int, int], fits: bool) -> None:
    profile = named("r1-two-m2-ultra-192")
    plan = plan_profile(profile, find_machine(profile.machine), weights=weights)
    assert plan.fits == fits


def test_two_192_gb_macs_hold_r1_in_3_bits_of_groups_of_64_without_raising_the_limit() -> None:
    profile = named("r1-two-m2-ultra-192")
    machine = find_machine(profile.machine)
    plan = plan_profile(profile, machine, weights=(3, 64), budget_bytes=machine.gpu_limit_bytes)
    assert plan.rows[0].memory is not None and plan.rows[0].memory.context >= 25_000


def test_each_of_two_machines_holds_half_and_what_both_need() -> None:
    shape, _ = read_shape(str(named("r1-two-m2-ultra-192").model_file))
    share = share_of(shape, 2)
    both = 2 * shape.vocab_size * shape.hidden_size / shape.num_parameters * shape.weights_bytes
    assert 2 * share.weights_bytes == pytest.approx(shape.weights_bytes + both, abs=2)
    assert share.weights_bytes - shape.weights_bytes / 2 < 10**9
    assert share_of(shape, 1) == shape


def test_a_profile_of_two_machines_says_what_each_holds(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("r1-two-m2-ultra-192") == 0
    text = said(capsys)
    assert "2 ranks, a pipeline of 31+30 layers, over Thunderbolt Bridge, TCP" in text
    assert "assumes a raised limit: sudo sysctl iogpu.wired_limit_mb=175000" in text


# --- the command


def test_a_profile_is_planned_for_its_own_machine_and_settings(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("laptop-16", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["model"], found["machine"]["id"], found["kv_cache"]["bits"]) == ("laptop-16", "m1-16", 8)


def test_flags_change_a_profiles_question(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("r1-m3-ultra-512", "--machine", "m2-ultra-192", "--json") == 3
    assert json.loads(capsys.readouterr().out)["machine"]["id"] == "m2-ultra-192"
    assert run("laptop-16", "--bits", "8", "--kv-bits", "4", "--budget-gb", "14", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["budget_bytes"], found["kv_cache"]["bits"]) == (14 * 10**9, 4)
    assert found["shape"]["weights_bytes"] == pytest.approx(8.19e9 * 8.5 / 8, rel=0.01)


def listed(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, Any]]:
    assert run("--list", "--json", *arguments) == 0
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return found


def test_the_list_has_the_largest_model_that_fits_first(capsys: pytest.CaptureFixture[str]) -> None:
    found = listed(capsys, "--machine", "m3-ultra-512")
    assert [row["profile"] for row in found] == [
        "r1-m3-ultra-512",
        "qwen3-235b-192",
        "qwen3-235b-128",
        "gpt-oss-120b-192",
        "gpt-oss-120b-128",
        "laptop-16",
        "r1-two-m2-ultra-192",
    ]
    assert all(row["fits"] and row["context"] for row in found)
    assert found[0]["decode_tokens_per_s"]["low"] < 20.65 < found[0]["decode_tokens_per_s"]["high"]  # as published


def test_what_does_not_fit_comes_last_with_the_reason(capsys: pytest.CaptureFixture[str]) -> None:
    found = listed(capsys, "--machine", "m2-ultra-192")
    assert found[0]["profile"] == "qwen3-235b-192"
    last = found[-1]
    assert (last["profile"], last["fits"], last["context"]) == ("r1-m3-ultra-512", False, None)
    assert last["note"] == "151.6 GB free"
    (pair,) = (row for row in found if row["num_machines"] == 2)
    assert pair["fits"] and pair["decode_tokens_per_s"] is None
    assert (pair["note"], pair["wired_limit_mb"]) == ("2 machines; limit raised", 175_000)


def test_the_profile_for_a_machines_size_is_before_its_twin(capsys: pytest.CaptureFixture[str]) -> None:
    names = [row["profile"] for row in listed(capsys, "--machine", "m4-max-128")]
    assert names.index("gpt-oss-120b-128") < names.index("gpt-oss-120b-192")


def test_the_list_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--list", "--machine", "m1-16") == 0
    text = capsys.readouterr().out
    assert "11.5 GB for the model" in text
    rows = [line.split() for line in text.splitlines()]
    start = rows.index(["profile", "weights", "context", "tok/s"]) + 1
    table = rows[start : start + len(PROFILES)]
    assert table[0][:3] == ["laptop-16", "4.6", "40,960"]
    assert {row[0] for row in table} == {profile.name for profile in PROFILES}  # nothing is cut off
    assert all(row[2:5] == ["does", "not", "fit"] for row in table[1:])
    assert "2 machines: weights on each; pippin plan PROFILE shows every rank" in " ".join(text.split())
    assert "cannot" not in text


def test_the_list_is_for_this_machine_where_none_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = this_machine()
    assert here is not None
    assert {row["machine"] for row in listed(capsys)} == {here.id}
    monkeypatch.setattr("server.commands.plan_question.this_machine", lambda: None)
    assert run("--list") == 2
    assert "name a machine with --machine" in capsys.readouterr().err


def test_an_unknown_machine_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--list", "--machine", "m3-ultra-500") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "Nearest: m3-ultra-512" in line


# --- every machine


def unraised() -> Iterator[tuple[Profile, Any]]:
    for machine in load_machines():
        yield from ((profile, machine) for profile in PROFILES if profile.wired_limit_mb)


def test_a_limit_is_never_raised_beyond_what_macos_can_spare() -> None:
    for profile, machine in unraised():
        limit = limit_bytes(profile, machine)
        assert limit >= machine.gpu_limit_bytes
        assert limit in (machine.gpu_limit_bytes, profile.wired_limit_mb * 2**20)  # type: ignore[operator]
        assert limit <= max(machine.gpu_limit_bytes, 0.9 * machine.memory_bytes)


def test_profiles_that_fit_are_together_at_the_top_on_every_machine() -> None:
    for machine in load_machines()[::9]:
        fits = [standing.context is not None for standing in ranked(machine)]
        assert fits == sorted(fits, reverse=True)
