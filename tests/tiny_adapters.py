"""Tiny random LoRA adapters for the tiny models, in mlx-lm's and in PEFT's format."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Layers = dict[str, tuple[int, int]]
"""Input and output sizes of each adapted layer, by path."""


def layers_of(model: Any, names: Sequence[str]) -> Layers:
    """Return the layers of an mlx-lm model with paths that end in one of `names`."""
    found = {}
    for path, module in model.named_modules():
        if path.rsplit(".", 1)[-1] in names and module.weight.ndim == 2:
            num_out, num_in = module.weight.shape
            found[path] = (num_in * 32 // module.bits if hasattr(module, "bits") else num_in, num_out)
    return found


def write_adapter(folder: Path, layers: Layers, *, seed: int, rank: int, scale: float = 4.0) -> Path:
    """Write an adapter as mlx_lm.lora does."""
    import mlx.core as mx

    mx.random.seed(seed)
    tensors = {}
    for path, (num_in, num_out) in layers.items():
        tensors[f"{path}.lora_a"] = 0.2 * mx.random.normal((num_in, rank))
        tensors[f"{path}.lora_b"] = 0.2 * mx.random.normal((rank, num_out))
    keys = sorted({path.split("layers.", 1)[-1].split(".", 1)[-1] for path in layers})
    parameters = {"rank": rank, "scale": scale, "dropout": 0.0, "keys": keys}
    config = {"fine_tune_type": "lora", "num_layers": 64, "lora_parameters": parameters}
    return _write(folder, "adapters.safetensors", tensors, config)


def write_peft_adapter(
    folder: Path, layers: Layers, *, seed: int, rank: int, alpha: float = 16.0, is_stabilized: bool = False
) -> Path:
    """Write an adapter as PEFT does."""
    import mlx.core as mx

    mx.random.seed(seed)
    tensors = {}
    for path, (num_in, num_out) in layers.items():
        tensors[f"base_model.model.{path}.lora_A.weight"] = 0.2 * mx.random.normal((rank, num_in))
        tensors[f"base_model.model.{path}.lora_B.weight"] = 0.2 * mx.random.normal((num_out, rank))
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "use_rslora": is_stabilized, "bias": "none"}
    return _write(folder, "adapter_model.safetensors", tensors, config)


def _write(folder: Path, name: str, tensors: dict[str, Any], config: dict[str, Any]) -> Path:
    import mlx.core as mx

    folder.mkdir(parents=True)
    mx.save_safetensors(str(folder / name), tensors)
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder
