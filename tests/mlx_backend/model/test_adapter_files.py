"""The folder of an adapter: what is read of it, and what is refused in one line. No MLX."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_backend.api.errors import ModelLoadError
from mlx_backend.model.adapter_files import AdapterFiles, open_adapter, stacked_bytes

MLX = {"fine_tune_type": "lora", "lora_parameters": {"rank": 4, "scale": 20.0}}
PEFT = {"peft_type": "LORA", "r": 4, "lora_alpha": 8}
MLX_SHAPES = {"model.layers.0.q.lora_a": [64, 4], "model.layers.0.q.lora_b": [4, 32]}
_Q, _V = "base_model.model.model.layers.0.q", "base_model.model.model.layers.0.v"
PEFT_SHAPES = {
    f"{_Q}.lora_A.weight": [4, 64],
    f"{_Q}.lora_B.weight": [32, 4],
    f"{_V}.lora_A.weight": [2, 64],
    f"{_V}.lora_B.weight": [16, 2],
}


def write(folder: Path, config: object, shapes: Mapping[str, Sequence[int]], name: str | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    header, end = {}, 0
    for tensor, shape in shapes.items():
        size = 4
        for each in shape:
            size *= each
        header[tensor] = {"dtype": "F32", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    written = json.dumps(header).encode()
    is_peft = isinstance(config, dict) and "peft_type" in config
    file = folder / (name or ("adapter_model.safetensors" if is_peft else "adapters.safetensors"))
    file.write_bytes(struct.pack("<Q", len(written)) + written + bytes(end))
    return folder


def opened(folder: Path, config: object, shapes: Mapping[str, Sequence[int]]) -> AdapterFiles:
    return open_adapter("x", write(folder, config, shapes))


def test_an_adapter_of_mlx_lm(tmp_path: Path) -> None:
    found = opened(tmp_path, MLX, MLX_SHAPES)
    (factors,) = found.factors.values()
    assert (found.form, found.rank, list(found.factors)) == ("mlx-lm", 4, ["model.layers.0.q"])
    assert (factors.num_in, factors.num_out, factors.rank, factors.scale) == (64, 32, 4, 20.0)


def test_an_adapter_of_peft_scales_by_the_rank_of_each_layer(tmp_path: Path) -> None:
    found = opened(tmp_path, PEFT, PEFT_SHAPES)
    q, v = found.factors["model.layers.0.q"], found.factors["model.layers.0.v"]
    assert (q.num_in, q.num_out, q.rank, q.scale) == (64, 32, 4, 2.0)
    assert (v.num_in, v.num_out, v.rank, v.scale) == (64, 16, 2, 4.0)
    assert (found.form, found.rank) == ("peft", 4)


def test_rank_stabilized_scaling_and_alphas_of_some_layers(tmp_path: Path) -> None:
    config = {**PEFT, "use_rslora": True, "alpha_pattern": {"layers.0.v": 32, "0.other": 1}}
    found = opened(tmp_path, config, PEFT_SHAPES)
    assert found.factors["model.layers.0.q"].scale == 4.0
    assert found.factors["model.layers.0.v"].scale == pytest.approx(32 / 2**0.5)


def test_the_digest_is_of_configuration_and_weights(tmp_path: Path) -> None:
    found = {
        opened(tmp_path / "a", MLX, MLX_SHAPES).digest,
        opened(tmp_path / "b", MLX, MLX_SHAPES).digest,
        opened(tmp_path / "c", {**MLX, "num_layers": 2}, MLX_SHAPES).digest,
    }
    assert len(found) == 2


def test_stacked_factors_are_padded_to_the_largest_rank_and_one_more_for_the_base(tmp_path: Path) -> None:
    mlx = opened(tmp_path / "a", MLX, MLX_SHAPES)
    peft = opened(tmp_path / "b", PEFT, PEFT_SHAPES)
    assert stacked_bytes([mlx]) == 4 * 2 * 4 * (64 + 32)
    assert stacked_bytes([mlx, peft]) == 4 * 3 * 4 * (64 + 32) + 4 * 3 * 2 * (64 + 16)


@pytest.mark.parametrize(
    ("config", "shapes", "message"),
    [
        ("[", MLX_SHAPES, "cannot be read"),
        ("[]", MLX_SHAPES, "not a mapping"),
        ("[" * 100_000, MLX_SHAPES, "cannot be read"),
        ({}, MLX_SHAPES, "lora_parameters.scale"),
        ({"lora_parameters": {"scale": "x"}}, MLX_SHAPES, "lora_parameters.scale"),
        ({"lora_parameters": {"scale": True}}, MLX_SHAPES, "lora_parameters.scale"),
        ({**MLX, "fine_tune_type": "full"}, MLX_SHAPES, "only lora"),
        (MLX, {}, "no tensors"),
        (MLX, {"model.layers.0.q.lora_a": [64, 4]}, "only one of its two factors"),
        (MLX, {**MLX_SHAPES, "model.norm.weight": [64]}, "not a factor of a linear layer"),
        (MLX, {"m.q.lora_a": [64, 4], "m.q.lora_b": [5, 32]}, "the rank must be 1 to"),
        (MLX, {"m.q.lora_a": [64, 2000], "m.q.lora_b": [2000, 32]}, "the rank must be 1 to"),
        (MLX, {"m.q.lora_a": [8, 64, 4], "m.q.lora_b": [8, 4, 32]}, "not a linear layer"),
        ({**PEFT, "peft_type": "IA3"}, PEFT_SHAPES, "only LORA"),
        ({**PEFT, "use_dora": True}, PEFT_SHAPES, "use_dora"),
        ({**PEFT, "bias": "all"}, PEFT_SHAPES, "bias"),
        ({**PEFT, "modules_to_save": ["lm_head"]}, PEFT_SHAPES, "modules_to_save"),
        ({**PEFT, "alpha_pattern": {".*": 1}}, PEFT_SHAPES, "alpha_pattern"),
        ({**PEFT, "alpha_pattern": [1]}, PEFT_SHAPES, "alpha_pattern"),
        ({"peft_type": "LORA"}, PEFT_SHAPES, "lora_alpha"),
        (PEFT, MLX_SHAPES, "not a factor of a linear layer"),
    ],
)
def test_what_cannot_be_served_is_refused_in_one_line(
    config: object, shapes: dict[str, list[int]], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelLoadError, match=message) as raised:
        opened(tmp_path, config, shapes)
    assert "\n" not in str(raised.value)
    assert str(raised.value).startswith("adapter x: ")


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"has no adapter_config.json"):
        open_adapter("x", tmp_path)
    write(tmp_path, PEFT, PEFT_SHAPES, name="adapter_model.bin")
    with pytest.raises(ModelLoadError, match="safe_serialization"):
        open_adapter("x", tmp_path)


@given(st.dictionaries(st.text(max_size=12), st.recursive(st.none() | st.integers() | st.text(max_size=5), st.lists)))
def test_any_header_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, header: dict[str, Any]) -> None:
    folder = tmp_path_factory.getbasetemp() / "any"
    write(folder, MLX, {})
    written = json.dumps({"model.layers.0.q.lora_a": header}).encode()
    (folder / "adapters.safetensors").write_bytes(struct.pack("<Q", len(written)) + written)
    with pytest.raises(ModelLoadError):
        open_adapter("x", folder)
