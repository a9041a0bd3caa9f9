from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import mlx.core as mx
import pytest
from mlx_lm import utils

from mlx_backend.api.errors import ModelLoadError
from mlx_backend.api.interface import LoadProgress
from mlx_backend.model import loader
from mlx_backend.model.checkpoint import open_checkpoint
from tests.tiny_models import write_model

pytestmark = pytest.mark.mlx


def load(folder: Path) -> list[LoadProgress]:
    seen: list[LoadProgress] = []
    checkpoint = open_checkpoint(folder)
    loader.read_weights(loader.build_model(checkpoint), checkpoint, seen.append)
    return seen


def change_config(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_model(tmp_path / "llama", "llama")


def test_progress_counts_every_byte_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "_READ_BYTES", 20_000)
    seen = load(folder)
    done = [progress.done_bytes for progress in seen]
    assert done == sorted(set(done))
    assert len(done) > 5
    total = (folder / "model.safetensors").stat().st_size
    assert done[-1] == seen[-1].total_bytes
    assert 0.98 * total < done[-1] <= total


def test_an_unknown_architecture(folder: Path) -> None:
    change_config(folder, model_type="nonesuch")
    with pytest.raises(ModelLoadError, match="does not support the architecture 'nonesuch'"):
        load(folder)


def test_weights_that_do_not_fit_the_config(folder: Path) -> None:
    change_config(folder, num_hidden_layers=3)
    with pytest.raises(ModelLoadError, match=r"does not match its config\.json"):
        load(folder)


def test_a_config_that_lacks_a_field(folder: Path) -> None:
    file = folder / "config.json"
    config = json.loads(file.read_text())
    del config["hidden_size"]
    file.write_text(json.dumps(config))
    with pytest.raises(ModelLoadError, match="cannot be built as a llama model"):
        load(folder)


def test_parameters_of_a_quantized_model_are_counted_unpacked(folder: Path) -> None:
    import mlx.nn as nn

    model = loader.build_model(open_checkpoint(folder))
    count = loader.count_parameters(model)
    nn.quantize(model, group_size=32, bits=4)
    assert loader.count_parameters(model) == count


# --- what lies beside the model


def output(folder: Path) -> list[float]:
    checkpoint = open_checkpoint(folder)
    model = loader.build_model(checkpoint)
    loader.read_weights(model, checkpoint, lambda _: None)
    logits = model(mx.array([[1, 2, 3]]))
    found: list[float] = logits[0, -1, :8].tolist()
    return found


def write_index(folder: Path, more: dict[str, str]) -> None:
    named = dict.fromkeys(mx.load(str(folder / "model.safetensors")), "model.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {**named, **more}}))


def test_a_shard_that_another_conversion_left_behind_is_not_loaded(folder: Path, tmp_path: Path) -> None:
    expected = output(folder)
    other = write_model(tmp_path / "other", "llama", seed=7)
    write_index(folder, {})
    shutil.copy(other / "model.safetensors", folder / "model-00002-of-00002.safetensors")
    assert output(folder) == expected
    (folder / "model.safetensors.index.json").unlink()
    assert output(folder) == expected


def test_a_part_that_the_model_takes_nothing_of(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = output(folder)
    mx.save_safetensors(str(folder / "mtp.safetensors"), {"mtp.fc.weight": mx.zeros((4, 4))})
    write_index(folder, {"mtp.fc.weight": "mtp.safetensors"})
    with caplog.at_level(logging.INFO, "pippin.load"):
        assert output(folder) == expected
    assert "mtp.safetensors" in caplog.text
    (folder / "mtp.safetensors").unlink()
    assert output(folder) == expected


def test_tensors_that_the_model_does_not_have_are_told(folder: Path) -> None:
    weights = mx.load(str(folder / "model.safetensors"))
    assert isinstance(weights, dict)
    mx.save_safetensors(str(folder / "model.safetensors"), {**weights, "extra.weight": mx.zeros((2,))})
    with pytest.raises(ModelLoadError, match=r"does not match its config\.json: Received 1 parameters not in model"):
        output(folder)


def test_an_index_of_files_that_are_not_there(folder: Path) -> None:
    expected = output(folder)
    names = {f"w{place}": f"model-{place:05}-of-00003.safetensors" for place in range(1, 4)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    assert output(folder) == expected


def test_a_quantization_under_its_other_name_alone(folder: Path) -> None:
    quantized = folder.parent / "quantized"
    model, config = utils.load_model(folder)
    model, config = utils.quantize_model(model, config, 32, 4)
    quantized.mkdir()
    utils.save_model(quantized, model)
    utils.save_config(config, quantized / "config.json")
    expected = output(quantized)
    file = quantized / "config.json"
    known = json.loads(file.read_text())
    del known["quantization"]
    assert "bits" in known["quantization_config"]
    file.write_text(json.dumps(known))
    assert output(quantized) == expected
