"""What is shipped: which files, their sums, their size, and what the card says of them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from scripts.pocket import package

EVALUATION = {
    "items": 200,
    "seed": 3,
    "batch": 8,
    "skills": {
        "letters": {"right": 199, "items": 200, "accuracy": 0.995},
        "recall at 4000": {"right": 150, "items": 200, "accuracy": 0.75},
    },
}
CONFIG = {
    "model_type": "deepseek_v3",
    "num_hidden_layers": 6,
    "hidden_size": 256,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "vocab_size": 1024,
    "max_position_embeddings": 4096,
    "quantization": {"group_size": 32, "bits": 8, "lm_head": {"group_size": 32, "bits": 4}},
}
HEADER = {
    "__metadata__": {"format": "mlx"},
    "model.embed_tokens.weight": {"dtype": "U32", "shape": [1024, 64]},  # 8 bits: four in each
    "model.embed_tokens.scales": {"dtype": "BF16", "shape": [1024, 8]},
    "model.embed_tokens.biases": {"dtype": "BF16", "shape": [1024, 8]},
    "lm_head.weight": {"dtype": "U32", "shape": [1024, 32]},  # 4 bits: eight in each
    "model.norm.weight": {"dtype": "BF16", "shape": [256]},
}


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """A converted model and a tokenizer, as far as packaging looks into them."""
    model, tokenizer = tmp_path / "mlx", tmp_path / "tokenizer"
    model.mkdir()
    tokenizer.mkdir()
    header = json.dumps(HEADER).encode()
    (model / "config.json").write_text(json.dumps(CONFIG))
    (model / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"weights")
    for name in package.TOKENIZER_FILES:
        (model / name).write_text("the converter's")
        (tokenizer / name).write_text(f"ours: {name}")
    return model, tokenizer


def test_the_folder_has_what_is_shipped_and_its_sums(folders: tuple[Path, Path], tmp_path: Path) -> None:
    target = tmp_path / "out" / "pocket"
    total = package.package(*folders, EVALUATION, target)
    files = {path.name: path.read_bytes() for path in target.iterdir()}
    assert files.keys() == {*package.SHIPPED, package.CHECKSUMS}
    assert total == sum(map(len, files.values()))
    assert files["tokenizer.json"] == b"ours: tokenizer.json"
    sums = files.pop(package.CHECKSUMS).decode()
    assert sums == "".join(f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in sorted(files))


def test_the_card_tells_what_was_measured(folders: tuple[Path, Path], tmp_path: Path) -> None:
    package.package(*folders, EVALUATION, tmp_path / "pocket")
    card = (tmp_path / "pocket" / package.CARD).read_text(encoding="utf-8")
    assert "| letters | 199 | 200 | 99.5% |\n| recall at 4000 | 150 | 200 | 75.0% |\n" in card
    assert "--items 200 --batch 8 --seed 3`" in card
    assert "of 0.5 million parameters" in card
    assert "quantized to 8 bits" in card


def test_parameters_are_counted_as_before_quantization(folders: tuple[Path, Path]) -> None:
    assert package.num_parameters(folders[0] / "model.safetensors", CONFIG) == 2 * 1024 * 256 + 256


def test_a_model_too_large_is_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    weights = folders[0] / "model.safetensors"
    weights.write_bytes(weights.read_bytes() + bytes(package.MAX_BYTES))
    with pytest.raises(ValueError, match="at most 8000000 are shipped"):
        package.package(*folders, EVALUATION, tmp_path / "pocket")


def test_a_missing_file_is_one_line_and_code_1(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluation = tmp_path / "evaluation.json"
    evaluation.write_text(json.dumps(EVALUATION))
    (folders[1] / "tokenizer.json").unlink()
    assert package.main([*map(str, folders), str(evaluation), "--into", str(tmp_path / "pocket")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("package: ") and "tokenizer.json" in error and error.count("\n") == 1
