"""LoRA adapters beside one another: each row's tokens are those of its adapter alone, as mlx-lm computes it."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from pathlib import Path

import mlx.core as mx
import pytest
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.tuner.utils import load_adapters
from mlx_lm.utils import load_model

from mlx_backend.api.errors import AdapterRefused, ModelLoadError
from mlx_backend.api.interface import AdapterConfig, EngineConfig, MemoryConfig, ModelInfo, PrefixCacheConfig
from mlx_backend.model.adapter_files import open_adapter, stacked_bytes
from tests.engine_client import one, request, running, tokens, until
from tests.tiny_adapters import layers_of, write_adapter, write_peft_adapter
from tests.tiny_models import write_model, write_quantized_model

pytestmark = pytest.mark.mlx

PROMPT = tuple(range(1, 90))
NAMES = ("", "first", "peft", "stabilized")


class Models:
    """A tiny model with its adapters, and the folders they are in."""

    def __init__(self, root: Path, kind: str, bits: int | None) -> None:
        write = write_model if bits is None else partial(write_quantized_model, bits=bits)
        self.folder = write(root / "model", kind)
        model = load_model(self.folder)[0]
        attention = layers_of(model, ("q_proj", "o_proj", "q_a_proj", "q_b_proj"))
        wide = layers_of(model, ("q_proj", "v_proj", "down_proj", "q_a_proj"))
        self.adapters = {
            "first": write_adapter(root / "first", wide, seed=1, rank=4),
            "peft": write_peft_adapter(root / "peft", attention, seed=2, rank=2),
            "stabilized": write_peft_adapter(root / "stabilized", wide, seed=3, rank=8, is_stabilized=True),
        }

    def config(self, **changes: object) -> EngineConfig:
        adapters = tuple(AdapterConfig(name, str(path)) for name, path in self.adapters.items())
        return EngineConfig(model_path=str(self.folder), adapters=adapters, **changes)  # type: ignore[arg-type]

    def reference(self, name: str, prompt: tuple[int, ...], num_tokens: int) -> list[int]:
        """Greedy tokens by mlx-lm alone, with the adapter put in as mlx-lm's own."""
        model = load_model(self.folder)[0]
        if name:
            load_adapters(model, str(_as_mlx_lm(self.adapters[name])))
            model.eval()
        caches, ids, found = make_prompt_cache(model), list(prompt), list[int]()
        for _ in range(num_tokens):
            logits = model(mx.array(ids)[None], cache=caches)
            ids = [int(mx.argmax(logits[0, -1]).item())]
            found += ids
        return found


def _as_mlx_lm(folder: Path) -> Path:
    """An adapter's folder in mlx-lm's format."""
    config = json.loads((folder / "adapter_config.json").read_text())
    if "peft_type" not in config:
        return folder
    rank = config["r"]
    scale = config["lora_alpha"] / (rank**0.5 if config["use_rslora"] else rank)
    found = mx.load(str(folder / "adapter_model.safetensors"))
    tensors, keys = {}, set()
    for name, array in found.items():
        path, factor = name.removeprefix("base_model.model.").removesuffix(".weight").rsplit(".lora_", 1)
        tensors[f"{path}.lora_{factor.lower()}"] = mx.contiguous(array.T)
        keys.add(path.split("layers.", 1)[-1].split(".", 1)[-1])
    out = folder.parent / f"{folder.name}-mlx"
    out.mkdir(exist_ok=True)
    mx.save_safetensors(str(out / "adapters.safetensors"), tensors)
    parameters = {"rank": rank, "scale": scale, "dropout": 0.0, "keys": sorted(keys)}
    written = {"fine_tune_type": "lora", "num_layers": 64, "lora_parameters": parameters}
    (out / "adapter_config.json").write_text(json.dumps(written))
    return out


@pytest.fixture(scope="module", params=["llama", "llama-4bit", "deepseek_v3"])
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Models:
    kind, _, bits = request.param.partition("-")
    return Models(tmp_path_factory.mktemp("adapters"), kind, 4 if bits else None)


async def test_rows_of_different_adapters_decode_as_each_alone_and_share_no_prefix(models: Models) -> None:
    expected = {name: models.reference(name, PROMPT, 24) for name in NAMES}
    assert len({*map(tuple, expected.values())}) == len(NAMES), "the adapters must matter"
    async with running(models.config(prefix_cache=PrefixCacheConfig(chunk_tokens=32))) as engine:
        info = engine.model_info
        assert info is not None, engine.failure
        assert [each.name for each in info.adapters] == [*NAMES[1:]]
        streams = [engine.submit([request(PROMPT, 24, adapter=name)]) for name in NAMES * 2]
        found = [(await tokens(stream))[0] for stream in streams]
        assert dict(zip(NAMES, found, strict=False)) == expected
        assert found[len(NAMES) :] == found[: len(NAMES)]
        again = engine.submit([request(PROMPT, 24, adapter="peft")])
        assert (await tokens(again))[0] == expected["peft"]
        assert again.num_cached_tokens >= 64


async def test_a_prefix_of_one_adapter_is_none_of_another(models: Models) -> None:
    async with running(models.config(prefix_cache=PrefixCacheConfig(chunk_tokens=32))) as engine:
        for name in NAMES:
            stream = engine.submit([request(PROMPT, 4, adapter=name)])
            await tokens(stream)
            assert stream.num_cached_tokens == 0, name


async def test_sequences_with_adapters_join_and_leave(models: Models) -> None:
    async with running(models.config()) as engine:
        alone = {name: await one(engine, PROMPT[:20], 30, adapter=name) for name in NAMES}

        async def late(name: str, wait_s: float) -> list[int]:
            await asyncio.sleep(wait_s)
            return await one(engine, PROMPT[:20], 30, adapter=name)

        found = await asyncio.gather(*(late(name, 0.01 * place) for place, name in enumerate(NAMES)))
        assert dict(zip(NAMES, found, strict=True)) == alone


async def test_the_adapters_bytes_are_in_the_plan(models: Models) -> None:
    files = [open_adapter(name, path) for name, path in models.adapters.items()]
    async with running(EngineConfig(model_path=str(models.folder))) as engine:
        assert engine.model_info is not None
        base = engine.model_info.weights_bytes
    async with running(models.config()) as engine:
        assert engine.model_info is not None
        assert engine.model_info.weights_bytes == base + stacked_bytes(files)


@pytest.mark.parametrize("models", ["llama-4bit"], indirect=True)
async def test_adapters_come_and_go_beside_rows_that_decode(models: Models, tmp_path: Path) -> None:
    expected = {name: models.reference(name, PROMPT[:20], 24) for name in NAMES}
    files = {name: open_adapter(name, path) for name, path in models.adapters.items()}
    config = models.config(memory=MemoryConfig(limit_gb=0.3, reserve_gb=0.1))
    async with running(replace(config, adapters=config.adapters[:1])) as engine:
        assert engine.model_info is not None
        base = engine.model_info.weights_bytes - stacked_bytes([files["first"]])

        async def ask(name: str) -> list[int]:
            return await one(engine, PROMPT[:20], 24, adapter=name)

        async def change(begun: Future[ModelInfo]) -> None:
            info = await asyncio.wrap_future(begun)
            assert info.weights_bytes == base + stacked_bytes([files[each.name] for each in info.adapters])
            assert info.memory is not None
            assert info.memory.weights_bytes == info.weights_bytes

        early = asyncio.gather(ask(""), ask("first"))
        await until(lambda: engine.stats().num_running == 2)
        for name in ("peft", "stabilized"):
            await change(engine.load_adapter(AdapterConfig(name, str(models.adapters[name]))))
            assert await ask(name) == expected[name]
        broken = shutil.copytree(models.adapters["first"], tmp_path / "broken")
        _spoil(broken)
        opened, info = engine.load_adapter(AdapterConfig("broken", str(broken))), engine.model_info
        with pytest.raises(AdapterRefused, match=r"broken: the factors of .* are not all finite"):
            await asyncio.wrap_future(opened)
        assert engine.model_info == info
        shutil.rmtree(models.adapters["stabilized"].rename(tmp_path / "gone"))  # what is held is in memory
        await change(engine.unload_adapter("first"))
        assert [*await early] == [expected[""], expected["first"]]
        found = [*await asyncio.gather(ask("stabilized"), ask("peft"), ask(""))]
        assert found == [expected["stabilized"], expected["peft"], expected[""]]
        for name in ("stabilized", "peft"):
            await change(engine.unload_adapter(name))
        assert await ask("") == expected[""]
        with pytest.raises(AdapterRefused, match=r"has no adapter_config.json"):
            engine.load_adapter(AdapterConfig("stabilized", str(models.adapters["stabilized"])))


def _truncate(folder: Path) -> None:
    path = folder / "adapters.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _rename(folder: Path) -> None:
    path = folder / "adapters.safetensors"
    found = {name.replace("layers.0", "layers.77"): array for name, array in mx.load(str(path)).items()}
    mx.save_safetensors(str(path), found)


def _widen(folder: Path) -> None:
    path = folder / "adapters.safetensors"
    loaded = mx.load(str(path)).items()
    found = {name: mx.concatenate([array] * 2) if name.endswith("a") else array for name, array in loaded}
    mx.save_safetensors(str(path), found)


def _spoil(folder: Path) -> None:
    path = folder / "adapters.safetensors"
    found = mx.load(str(path))
    mx.save_safetensors(str(path), {name: array * float("nan") for name, array in found.items()})


def _dora(folder: Path) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "fine_tune_type": "dora"}))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_truncate, "is truncated"),
        (_rename, "for another model: this one has no layer model.layers.77"),
        (_widen, "for another model: .* is 64 x .* here and 128 x"),
        (_spoil, "not all finite"),
        (_dora, "only lora"),
    ],
)
async def test_an_adapter_that_does_not_fit_is_refused_in_one_line(
    spoil: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    folder = write_model(tmp_path / "model", "llama")
    layers = layers_of(load_model(folder)[0], ("q_proj",))
    spoil(write_adapter(tmp_path / "adapter", layers, seed=1, rank=4))
    adapters = (AdapterConfig("bad", str(tmp_path / "adapter")),)
    async with running(EngineConfig(model_path=str(folder), adapters=adapters)) as engine:
        assert isinstance(engine.failure, ModelLoadError)
        assert "\n" not in str(engine.failure)
        with pytest.raises(ModelLoadError, match=message):
            raise engine.failure
