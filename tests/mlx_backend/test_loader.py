from __future__ import annotations

import json
from pathlib import Path

import pytest

from mlx_backend import loader
from mlx_backend.checkpoint import open_checkpoint
from mlx_backend.errors import ModelLoadError
from mlx_backend.interface import LoadProgress
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
    with pytest.raises(ModelLoadError, match="no architecture 'nonesuch'"):
        load(folder)


def test_weights_that_do_not_fit_the_config(folder: Path) -> None:
    change_config(folder, num_hidden_layers=3)
    with pytest.raises(ModelLoadError, match=r"does not fit its config\.json"):
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
