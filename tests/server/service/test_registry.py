"""Served models: names, readiness, and what becomes of a tokenizer that cannot be loaded."""

from __future__ import annotations

import threading

import pytest

from mlx_backend.api.errors import EngineDead, EngineNotReady, ModelLoadError
from mlx_backend.api.interface import EngineHealth
from server.errors import InvalidRequest, ModelNotFound
from server.service.registry import ModelRegistry, ServedModel
from server.text.tokenizer import ByteTokenizer, Tokenizer
from tests.fake_engine import FakeEngine
from tests.serving import build_registry, wait_until


def fail() -> Tokenizer:
    raise ModelLoadError("no tokenizer.json")


def test_a_model_is_found_by_id_and_alias() -> None:
    models = [ServedModel("a", FakeEngine(), ByteTokenizer, aliases=("org/a",)), ServedModel("b", FakeEngine(), fail)]
    registry = ModelRegistry(models)
    assert registry.resolve("a") is registry.resolve("org/a") is models[0]
    assert registry.resolve("b") is models[1]
    assert registry.list() == tuple(models)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("claude-opus-4", "a"),
        ("claude-haiku-4", "b"),
        ("claude-haiku", "a"),
        ("b", "b"),
        ("gpt-4", "b"),
        ("gpt-4o", None),
        ("a-claude-x", None),
        ("CLAUDE-x", None),
    ],
)
def test_an_alias_may_stand_for_many_names(name: str, expected: str | None) -> None:
    one = ServedModel("b", FakeEngine(), fail, aliases=("claude-haiku-*", "gpt-?"))
    other = ServedModel("a", FakeEngine(), fail, aliases=("claude-*", "b*"))
    registry = ModelRegistry([one, other])
    if expected is None:
        with pytest.raises(ModelNotFound):
            registry.resolve(name)
    else:
        assert registry.resolve(name).id == expected


@pytest.mark.parametrize("name", ["x", "/etc/passwd", "../mock", "MOCK", "mock "])
def test_an_unknown_name_is_not_found(name: str) -> None:
    with pytest.raises(ModelNotFound):
        build_registry(FakeEngine()).resolve(name)


def test_no_name_means_the_only_model() -> None:
    one, two = ServedModel("a", FakeEngine(), fail), ServedModel("b", FakeEngine(), fail)
    assert ModelRegistry([one]).resolve("") is one
    with pytest.raises(InvalidRequest) as caught:
        ModelRegistry([one, two]).resolve("")
    assert caught.value.param == "model"


def test_start_does_not_wait_for_the_tokenizer() -> None:
    engine, may_load = FakeEngine(), threading.Event()

    def load() -> Tokenizer:
        may_load.wait()
        return ByteTokenizer()

    model = ServedModel("a", engine, load)
    ModelRegistry([model]).start()
    assert engine.num_started == 1
    assert model.health().status == "loading"
    with pytest.raises(EngineNotReady):
        model.ready()
    may_load.set()
    wait_until(lambda: model.tokenizer is not None)
    assert model.health().status == "ok"
    assert model.ready()[1] is engine.model_info


def test_a_model_is_not_ready_while_its_engine_loads() -> None:
    model = build_registry(FakeEngine(is_loaded=False)).resolve("mock")
    assert model.health().status == "loading"
    with pytest.raises(EngineNotReady):
        model.ready()


def test_a_broken_tokenizer_is_the_models_death() -> None:
    model = ServedModel("a", FakeEngine(), fail)
    died = threading.Event()
    model.on_death(died.set)
    model.start()
    assert died.wait(30)
    assert isinstance(model.failure, ModelLoadError)
    assert model.health() == EngineHealth(status="dead", detail="no tokenizer.json")
    with pytest.raises(EngineDead):
        model.ready()


def test_the_engines_death_is_the_models() -> None:
    engine = FakeEngine()
    model = build_registry(engine).resolve("mock")
    model.on_death(lambda: None)
    assert len(engine.callbacks) == 1
    engine.failure = RuntimeError("device lost")
    with pytest.raises(EngineDead, match="device lost"):
        model.ready()


async def test_close_closes_every_engine() -> None:
    engines = [FakeEngine(), FakeEngine()]
    await ModelRegistry([ServedModel(str(i), engine, fail) for i, engine in enumerate(engines)]).close()
    assert [engine.num_closed for engine in engines] == [1, 1]
