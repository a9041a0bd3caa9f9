"""Tiny checkpoints as published: fp8 blocks or bfloat16, each expert a separate tensor under its own name."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.tiny_models import COMMON, CONFIGS

QWEN3_MOE: dict[str, Any] = {
    **COMMON,
    "model_type": "qwen3_moe",
    "num_hidden_layers": 2,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "norm_topk_prob": True,
    "tie_word_embeddings": False,
}
Tensor = tuple[str, tuple[int, ...], bytes]
"""Dtype by safetensors' name, shape, bytes."""


def write_safetensors(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a weight file of any dtype."""
    header, end = {}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + len(data)]}
        end += len(data)
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    file.write_bytes(len(raw).to_bytes(8, "little") + raw + b"".join(data for _, _, data in tensors.values()))


def write_published(folder: Path, name: str, *, fp8: bool = False, num_files: int = 1, **changes: Any) -> Path:
    """Write `deepseek_v3` or `qwen3_moe` with separate experts and heads; `fp8`: in blocks of 128 with a scale each."""
    config = {**COMMON, "eos_token_id": 0, **CONFIGS.get(name, QWEN3_MOE), "torch_dtype": "bfloat16", **changes}
    if fp8:
        config["quantization_config"] = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}
    folder.mkdir(parents=True, exist_ok=True)
    tensors = _tensors(config, fp8=fp8)
    names = sorted(tensors)
    weight_map: dict[str, str] = {}
    for place in range(num_files):
        file = "model.safetensors" if num_files == 1 else f"model-{place + 1:05}-of-{num_files:05}.safetensors"
        mine = names[place::num_files]
        write_safetensors(folder / file, {each: tensors[each] for each in mine})
        weight_map |= dict.fromkeys(mine, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def _tensors(config: Mapping[str, Any], *, fp8: bool) -> dict[str, Tensor]:
    import mlx.core as mx
    from mlx.utils import tree_flatten

    module = importlib.import_module(f"mlx_lm.models.{config['model_type']}")
    mx.random.seed(1)
    model = module.Model(module.ModelArgs.from_dict(dict(config)))
    found: dict[str, Any] = {}
    for path, array in tree_flatten(model.parameters()):
        random = mx.random.normal(array.shape) * 0.1 if array.ndim > 1 else array
        found |= dict(_apart(path, random))
    joined = {path: array for path, array in found.items() if "embed_q" not in path and "unembed_out" not in path}
    for path in found:
        if path.endswith("embed_q.weight"):
            attention = path.removesuffix("embed_q.weight")
            keys, values = found[path].swapaxes(-1, -2), found[f"{attention}unembed_out.weight"]
            heads = mx.concatenate([keys, values], axis=1)
            joined[f"{attention}kv_b_proj.weight"] = heads.reshape(-1, heads.shape[-1])
    tensors: dict[str, Tensor] = {}
    for path, array in joined.items():
        if fp8 and path.endswith("_proj.weight"):
            rows, columns = array.shape
            scales = mx.full((-(-rows // 128), -(-columns // 128)), 0.5)
            tensors[path] = ("F8_E4M3", (rows, columns), bytes(memoryview(mx.to_fp8(array * 2))))
            tensors[f"{path}_scale_inv"] = ("F32", tuple(scales.shape), bytes(memoryview(scales)))
        else:
            data = bytes(memoryview(array.astype(mx.bfloat16).view(mx.uint16)))
            tensors[path] = ("BF16", tuple(array.shape), data)
    return tensors


def _apart(path: str, array: Any) -> list[tuple[str, Any]]:
    """Split a stack into its experts, each under its own name."""
    if ".switch_mlp." not in path:
        return [(path, array)]
    return [(path.replace(".switch_mlp.", f".experts.{place}."), array[place]) for place in range(array.shape[0])]
