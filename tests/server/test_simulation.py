"""Which model and machine a simulation is of, from what people write."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mlx_backend.api.errors import ModelLoadError
from mlx_backend.api.interface import KVCacheConfig, MemoryConfig, SimulateConfig
from server import cli
from server.config import Config, ConfigError
from server.profiles import model_files, model_names
from server.simulation import check, simulated


def wanted(machine: str | None, model: str | None, **sections: object) -> Config:
    simulate = SimulateConfig(machine=machine, model=model)
    return Config(simulate=simulate, **{"backend": "mock", **sections})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("machine", "model", "file"),
    [
        ("m3-ultra-512", "deepseek-r1", "deepseek-r1-4bit"),
        ("m3-ultra-512", "deepseek-r1-3bit", "deepseek-r1-3bit"),
        ("m3-ultra-512", "qwen3-235b", "qwen3-235b-4bit"),
        ("m4-max-128", "qwen3-235b", "qwen3-235b-3bit"),  # the larger does not fit
        ("m1-16", "deepseek-r1", "deepseek-r1-3bit"),  # neither fits, and loading says so
        ("m1-16", "qwen3-8b", "qwen3-8b-4bit"),
    ],
)
def test_a_name_is_the_largest_quantization_that_fits(machine: str, model: str, file: str) -> None:
    memory = MemoryConfig(limit_gb=None)
    name, told = simulated(wanted(machine, model, memory=memory))
    assert (name, Path(told.model_path).stem) == (model, file)
    assert (told.backend, told.simulate.machine) == ("mock", machine)


def test_a_profile_brings_its_kv_cache_and_its_limit() -> None:
    name, told = simulated(wanted("m4-max-128", "qwen3-235b-128"))
    assert (name, Path(told.model_path).stem, told.kv_cache.bits) == ("qwen3-235b-128", "qwen3-235b-3bit", 8)
    assert told.memory.limit_bytes == 112_000 * 2**20
    _, told = simulated(
        wanted("m4-max-128", "qwen3-235b-128", kv_cache=KVCacheConfig(bits=4), memory=MemoryConfig(limit_gb=100))
    )
    assert (told.kv_cache.bits, told.memory.limit_gb) == (4, 100)


def test_a_file_and_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "my-model"
    folder.mkdir()
    config = folder / "config.json"
    config.write_bytes(model_files("qwen3-8b-4bit")[0].read_bytes())
    for given in (folder, config):
        name, told = simulated(wanted("m1-16", str(given)))
        assert (name, told.model_path) == ("my-model", str(given))


@pytest.mark.parametrize(
    ("machine", "model", "says"),
    [
        ("m3-ultra-51", "deepseek-r1", "simulate.machine: Unknown machine 'm3-ultra-51'. Nearest: m3-ultra-512"),
        ("m1-16", "nothing", "there is no 'nothing'; known by name: deepseek-r1, gpt-oss-120b, qwen3-235b, qwen3-8b"),
        ("m2-ultra-192", "r1-two-m2-ultra-192", "r1-two-m2-ultra-192 is for 2 machines; one is simulated"),
    ],
)
def test_what_is_not_known_is_said(machine: str, model: str, says: str) -> None:
    with pytest.raises(ModelLoadError) as raised:
        simulated(wanted(machine, model))
    assert says in str(raised.value)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (wanted("m1-16", "qwen3-8b", backend="mlx"), "say --backend mock"),
        (wanted(None, "qwen3-8b"), "name it with --simulate"),
        (wanted("m1-16", None), "name it with --as: deepseek-r1, "),
    ],
)
def test_half_a_simulation_is_an_error(config: Config, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        check(config)


def test_none_and_a_whole_one_are_not() -> None:
    check(Config())
    check(wanted("m1-16", "qwen3-8b"))


def test_the_names() -> None:
    assert model_names() == ["deepseek-r1", "gpt-oss-120b", "qwen3-235b", "qwen3-8b"]
    assert [file.stem for file in model_files("deepseek-r1")] == ["deepseek-r1-3bit", "deepseek-r1-4bit"]
    assert model_files("deepseek") == []


def test_the_same_names_are_planned(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["plan", "deepseek-r1", "--machine", "m3-ultra-512", "--json"])
    assert ended.value.code == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["model"], document["shape"]["weights_bytes"]) == ("deepseek-r1", 377_606_822_912)
