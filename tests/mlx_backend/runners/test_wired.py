"""Wired weights from the decision to the end, with a device that is made up; and that the runner goes in that order."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mlx_backend.planning import wired_lock
from mlx_backend.planning.limits import DeviceFacts
from mlx_backend.planning.wired_lock import WiredLock, look
from mlx_backend.planning.wiring import Panic
from tests.tiny_models import write_model

pytestmark = pytest.mark.mlx

MAC = DeviceFacts(name="Apple M3 Ultra", memory_bytes=549_755_813_888, recommended_bytes=412_316_860_416)
R1_BYTES = 377_600_000_000


@pytest.fixture
def device_thread() -> Iterator[ThreadPoolExecutor]:
    """Where a runner lives: it ends the streams of its thread."""
    with ThreadPoolExecutor(1) as thread:
        yield thread


def noted(calls: list[Any], name: str, real: Any) -> Any:
    def call(*arguments: Any) -> Any:
        calls.append(name)
        return real(*arguments)

    return call


@pytest.fixture
def device_calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """A Mac with a state folder of this test; the calls to its device."""
    from mlx_backend.runners import device, wired

    calls: list[Any] = []

    def wire(num_arrays: int, recommended_bytes: int) -> int:
        calls.append(("wire", num_arrays))
        return R1_BYTES + num_arrays

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(wired, "macos_version", lambda: ((26, 5, 2), "25F84"))
    monkeypatch.setattr(wired, "wired_bytes", lambda: 5 * 10**9)
    monkeypatch.setattr(wired, "find_panics", list)
    monkeypatch.setattr(device, "wire", wire)
    monkeypatch.setattr(device, "unwire", lambda: calls.append("unwire"))
    return calls


def decided(policy: Any = "auto", weights_bytes: int = R1_BYTES, facts: DeviceFacts = MAC) -> Any:
    from mlx_backend.runners.wired import WiredWeights

    weights = WiredWeights()
    weights.decide(policy, facts, weights_bytes, "r1", has_several_models=False)
    return weights


def test_it_is_wired_once_and_the_lock_is_given_back(device_calls: list[Any]) -> None:
    weights = decided()
    assert (weights.plan.wired_bytes, device_calls) == (R1_BYTES, [])
    assert look()[1]
    assert weights.wire(100).wired_bytes > R1_BYTES
    (call,) = device_calls
    assert call[0] == "wire" and call[1] > 100
    weights.unwire()
    weights.unwire()
    assert device_calls[1:] == ["unwire"]
    assert look()[0].holder is None and not look()[1]


def test_a_second_process_runs_unwired_and_says_who_has_it(device_calls: list[Any]) -> None:
    holding = WiredLock.acquire("other")
    weights = decided()
    holder = look()[0].holder
    assert str(holder) in weights.plan.reason and weights.plan.single_reason is None
    assert weights.wire(100).wired_bytes == 0
    weights.unwire()
    assert device_calls == []
    holding.release()


@pytest.mark.parametrize("content", ["", "{}"])
def test_a_holder_that_the_file_does_not_name(device_calls: list[Any], content: str) -> None:
    holding = WiredLock.acquire("other")
    wired_lock.lock_file().write_text(content)
    assert decided().plan.reason.startswith("another process has wired memory")
    holding.release()


def test_a_lock_that_cannot_be_taken(device_calls: list[Any], tmp_path: Path) -> None:
    (tmp_path / "state").touch()
    plan = decided().plan
    assert (plan.wired_bytes, plan.single_reason) == (0, None)
    assert "cannot be taken" in plan.reason


def test_what_is_not_wired_takes_no_lock(device_calls: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for weights in (decided("never"), decided(weights_bytes=10**9), decided(facts=DeviceFacts(name="cpu"))):
        assert weights.wire(5).wired_bytes == 0
        weights.unwire()
    assert device_calls == [] and not wired_lock.lock_file().parent.exists()


def test_a_panic_after_it_was_wired_is_found_at_the_next_start(
    device_calls: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlx_backend.runners import wired

    decided().unwire()
    first = look()[0].first_at
    assert first is not None
    panics: Sequence[Panic] = [Panic("a.panic", first + 1)]
    monkeypatch.setattr(wired, "find_panics", lambda: panics)
    plan = decided().plan
    assert plan.wired_bytes == 0 and "a.panic" in (plan.single_reason or "")
    again = decided("always")
    assert again.plan.wired_bytes
    again.unwire()
    panics = [Panic("a.panic", first)]
    weights = decided()
    assert weights.plan.wired_bytes  # `always` has acknowledged the panic
    weights.unwire()


def test_after_a_panic_the_runner_computes_one_sequence(
    device_calls: list[Any], device_thread: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from mlx_backend.api.interface import EngineConfig
    from mlx_backend.planning.wiring import Wiring
    from mlx_backend.runners import mlx, wired

    monkeypatch.setattr(wired, "decide_wiring", lambda facts: Wiring(reason="a panic", single_reason="after a panic"))
    runner = mlx.MLXRunner(EngineConfig(model_path=str(write_model(tmp_path / "llama", "llama"))))
    info = device_thread.submit(runner.load, lambda _: None).result()
    device_thread.submit(runner.close).result()
    assert (info.is_batched, info.unbatched_reason) == (False, "after a panic")
    assert info.memory is not None and (info.memory.wired_bytes, info.memory.wired_reason) == (0, "a panic")


@pytest.mark.parametrize(
    ("platform", "already", "expected"), [("darwin", None, "1000"), ("darwin", "5", "5"), ("linux", None, None)]
)
def test_what_mlx_reads_is_set_before_it_is_imported_on_macs(
    monkeypatch: pytest.MonkeyPatch, platform: str, already: str | None, expected: str | None
) -> None:
    from mlx_backend import factory

    name = "MLX_METAL_RESIDENCY_REFRESH_INTERVAL_MS"
    monkeypatch.setenv(name, already or "")
    if already is None:
        monkeypatch.delenv(name)
    monkeypatch.setattr("sys.platform", platform)
    monkeypatch.setattr(factory, "macos_version", lambda: ((26, 5), "25F84"))
    monkeypatch.setattr("importlib.metadata.version", {"mlx": "0.32.4"}.__getitem__)
    factory._prepare_environment.__wrapped__()
    assert os.environ.get(name) == expected


def test_mlx_may_refuse(device_calls: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from mlx_backend.runners import device

    def refuse(*_: int) -> int:
        raise ValueError("larger than the maximum working set")

    weights = decided()
    monkeypatch.setattr(device, "wire", refuse)
    wiring = weights.wire(5)
    assert wiring.wired_bytes == 0 and "maximum working set" in wiring.reason
    assert device_calls == ["unwire"] and not look()[1]


def test_the_runner_wires_after_loading_and_unwires_before_it_lets_go(
    device_calls: list[Any], device_thread: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A small model that `always` wires: batched, and what is wired is what was alive after the probes."""
    from dataclasses import replace

    from mlx_backend.api.interface import EngineConfig, MemoryConfig
    from mlx_backend.runners import device, mlx

    monkeypatch.setattr(device, "read_facts", lambda: replace(MAC, memory_bytes=2**34, recommended_bytes=2**33))
    for name in ("read_weights", "check_batching"):
        real = getattr(mlx, name)
        monkeypatch.setattr(mlx, name, noted(device_calls, name, real))
    folder = write_model(tmp_path / "llama", "llama")
    runner = mlx.MLXRunner(EngineConfig(model_path=str(folder), memory=MemoryConfig(wired="always")))
    monkeypatch.setattr(device, "unwire", lambda: device_calls.append(("unwire", hasattr(runner, "_model"))))
    info = device_thread.submit(runner.load, lambda _: None).result()
    assert info.is_batched and info.memory is not None and info.memory.wired_bytes > 0
    assert "KV caches are not" in info.memory.wired_reason
    device_thread.submit(runner.close).result()
    assert [call if isinstance(call, str) else call[0] for call in device_calls] == [
        "read_weights",
        "check_batching",
        "wire",
        "unwire",
    ]
    assert device_calls[-1] == ("unwire", True)
    assert not look()[1]
