"""Calibration: losses by computing the model, codes that make up for one another's errors, and a file of losses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mlx_backend.conversion import entry
from mlx_backend.conversion.entry import Choice, ConversionError, Sample
from mlx_backend.conversion.losses import LossFile
from mlx_backend.conversion.measured import cut, first_tokens, spread
from tests.published_models import write_published
from tests.tiny_models import VOCAB_SIZE, write_quantized_model

pytestmark = pytest.mark.mlx

IDS = [(7 * place * place + 3 * place) % VOCAB_SIZE for place in range(96)]
SAMPLES = (Sample(tuple(IDS[:24])), Sample(tuple(IDS[24:40]), 6), Sample(tuple(IDS[40:64])))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_published(tmp_path_factory.mktemp("calibrated") / "source", "qwen3_moe")


def test_samples_are_taken_from_all_over() -> None:
    samples = cut(IDS, 8)
    assert [len(sample.ids) for sample in samples] == [8] * 12 and samples[1].ids == tuple(IDS[8:16])
    assert spread(samples, 24) == (samples[0], samples[4], samples[8])
    assert first_tokens(samples, 20) == samples[:2]
    assert first_tokens(cut(IDS), 20) == (Sample(tuple(IDS[:20])),)
    assert first_tokens((Sample(tuple(IDS), 50),), 20) == () == cut(IDS[:1])


def test_compensation_loses_less_of_the_output_than_search(source: Path) -> None:
    import mlx.core as mx

    from mlx_backend.conversion.compensated import compensated, output_error
    from mlx_backend.conversion.search import searched
    from mlx_backend.conversion.spec import Spec

    inputs = mx.random.normal((64, 16), key=mx.random.key(0)) @ mx.random.normal((16, 96), key=mx.random.key(1))
    weight = mx.random.normal((2, 8, 96), key=mx.random.key(2)).astype(mx.bfloat16)
    hessian = inputs.T @ inputs / 64
    for spec in (Spec(2, 32), Spec(4, 32)):
        for whole, own in ((weight, mx.stack([hessian] * 2)), (weight[1], hessian)):
            made, plain = compensated(whole, spec, own), searched(whole, spec)
            assert [(each.shape, each.dtype) for each in made] == [(each.shape, each.dtype) for each in plain]
            assert output_error(whole, made, spec, own) < 0.5 * output_error(whole, plain, spec, own)
    assert mx.array_equal(compensated(weight, Spec(8, 32), hessian)[0], searched(weight, Spec(8, 32))[0])


def test_hessians_are_those_of_the_inputs_and_of_each_expert(source: Path) -> None:
    import mlx.core as mx

    from mlx_backend.conversion.calibrated import Calibrated

    calibrated = Calibrated(source, SAMPLES)
    found: dict[str, Any] = {}
    model = calibrated.computed.model
    layer = model.model.layers[1]
    kind = type(layer.mlp)

    class Seen(kind):  # type: ignore[misc, valid-type]
        def __call__(self, x: mx.array) -> Any:
            found["x"] = [*found.get("x", []), x.reshape(-1, x.shape[-1])]
            return super().__call__(x)

    layer.mlp.__class__ = Seen
    for sample in SAMPLES:
        model(mx.array([sample.ids]))
    layer.mlp.__class__ = kind
    x = mx.concatenate(found["x"])
    router = calibrated.hessians.of("model.layers.1.mlp.gate")
    assert router is not None and mx.allclose(router, x.T @ x / x.shape[0], rtol=1e-3, atol=1e-4).item()
    experts = calibrated.hessians.of("model.layers.1.mlp.switch_mlp.up_proj")
    assert experts is not None and experts.shape == (4, *router.shape)
    assert not mx.allclose(experts[0], experts[1], rtol=1e-3).item()
    assert mx.allclose(experts.mean(0), router, rtol=0.5, atol=0.2).item()
    assert calibrated.hessians.of("model.embed_tokens") is None
    head = calibrated.hessians.of("lm_head")
    assert head is not None and head.shape == router.shape


@pytest.mark.parametrize("kind", ["published", "quantized"])
def test_losses_are_those_of_one_weight_at_a_time(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlx_backend.conversion.calibrated import Calibrated
    from mlx_backend.conversion.sensitivity import measured_options, read_sizes
    from mlx_backend.conversion.source import open_source

    if kind == "published":
        source = write_published(tmp_path / "model", "deepseek_v3", num_hidden_layers=2, first_k_dense_replace=2)
    else:
        source = write_quantized_model(tmp_path / "model", "llama", bits=8, num_hidden_layers=1)
    opened = open_source(source)
    sizes, file = read_sizes(opened, is_measured=True), tmp_path / "losses.jsonl"
    calibrated = Calibrated(source, SAMPLES[:1])
    options = measured_options(opened, calibrated, sizes, lambda _: None, LossFile(file, {}))
    assert options.keys() == opened.modules.keys()
    for path, found in options.items():
        by_spec: dict[Any, float] = {option.spec: option.loss for option in found}
        least, most = min(by_spec, key=lambda spec: spec.bits_per_weight if spec else 99), found[-1]
        assert most.loss == 0.0 and most.spec == opened.modules[path].spec
        assert by_spec[least] > 0.0 or len(found) == 1
        assert calibrated.computed.kl(path) == 0.0  # the model is as it was

    def fail(*_: Any) -> Any:
        raise AssertionError("measured again")

    monkeypatch.setattr(calibrated, "quantize", fail)
    assert measured_options(opened, calibrated, sizes, lambda _: None, LossFile(file, {})) == options


def test_a_file_of_losses_is_of_one_model_and_goes_on_where_it_was_cut(tmp_path: Path) -> None:
    file = tmp_path / "losses.jsonl"
    LossFile(file, {"a": 1}).add("x", {"2 bits g64": 0.5})
    whole = file.read_bytes()
    file.write_bytes(whole + b'{"path": "y", "los')
    again = LossFile(file, {"a": 1})
    assert again.get("x") == {"2 bits g64": 0.5} and again.get("y") is None and file.read_bytes() == whole
    with pytest.raises(ConversionError, match="of another model or of other samples"):
        LossFile(file, {"a": 2})
    for content in (b"no losses", b"[]\n", b'{"losses_of": {"a": 1}}\n[]\n'):
        file.write_bytes(content)
        with pytest.raises(ConversionError, match="losses"):
            LossFile(file, {"a": 1})


def test_a_calibrated_conversion_is_nearer_and_always_the_same(source: Path, tmp_path: Path) -> None:
    choice = Choice(bits=2, group_size=32, calibration=SAMPLES)
    digests = []
    for name in ("one", "two"):
        prepared = entry.prepare(source, "tiny", choice)
        assert prepared.scales == "calibration"
        prepared.run(tmp_path / name, lambda _: None)
        digests.append((tmp_path / name / "model.safetensors").read_bytes())
    assert digests[0] == digests[1]
    entry.prepare(source, "tiny", Choice(bits=2, group_size=32, scales="search")).run(tmp_path / "search", print)
    kls = {name: entry.compare(source, tmp_path / name, SAMPLES, lambda _: None).kl for name in ("one", "search")}
    assert kls["one"] < kls["search"]
    plan = json.loads((tmp_path / "one" / "conversion.json").read_text())["plan"]
    assert plan["scales"].startswith("calibration ")
