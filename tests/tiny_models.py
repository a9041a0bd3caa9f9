"""Tiny random-weight checkpoints in mlx-lm's format, one per cache kind, for tests of shapes and equality."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

from tests.tiny_tokenizer import write_tiny_tokenizer

VOCAB_SIZE = 320
COMMON: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 2048,
}
WINDOW = 32

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "num_hidden_layers": 2, "tie_word_embeddings": True},
    "deepseek_v3": {
        "model_type": "deepseek_v3",
        "num_hidden_layers": 3,
        "num_key_value_heads": 4,
        "moe_intermediate_size": 32,
        "n_shared_experts": 1,
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "n_group": 2,
        "topk_group": 1,
        "routed_scaling_factor": 2.5,
        "kv_lora_rank": 32,
        "q_lora_rank": 32,
        "qk_rope_head_dim": 16,
        "v_head_dim": 16,
        "qk_nope_head_dim": 16,
        "first_k_dense_replace": 1,
        "rope_scaling": None,
    },
    "gpt_oss": {
        "model_type": "gpt_oss",
        "num_hidden_layers": 2,
        "intermediate_size": 32,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": WINDOW,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "gemma3": {
        "model_type": "gemma3_text",
        "num_hidden_layers": 2,
        "query_pre_attn_scalar": 16,
        "sliding_window": WINDOW,
        "sliding_window_pattern": 2,
        "rms_norm_eps": 1e-6,
    },
    "falcon_h1": {
        "model_type": "falcon_h1",
        "num_hidden_layers": 2,
        "mamba_d_ssm": 64,
        "mamba_d_head": 16,
        "mamba_n_heads": 4,
        "mamba_d_state": 16,
        "mamba_expand": 1,
    },
    "mamba2": {
        "model_type": "mamba2",
        "num_hidden_layers": 2,
        "num_heads": 8,
        "head_dim": 16,
        "state_size": 16,
        "conv_kernel": 4,
        "n_groups": 1,
        "expand": 2,
        "use_bias": False,
        "use_conv_bias": True,
        "tie_word_embeddings": True,
        "time_step_limit": [0.0, 100.0],
        "time_step_rank": "auto",
        "layer_norm_epsilon": 1e-5,
    },
    "llama4": {
        "model_type": "llama4",
        "text_config": {
            **COMMON,
            "num_hidden_layers": 4,
            "model_type": "llama4_text",
            "attention_bias": False,
            "attention_chunk_size": 2048,
            "intermediate_size_mlp": 128,
            "interleave_moe_layer_step": 8,
            "num_experts_per_tok": 1,
            "num_local_experts": 2,
            "rope_scaling": None,
            "use_qk_norm": True,
        },
    },
}


def write_served_model(folder: Path, name: str = "llama", **changes: Any) -> Path:
    """Write a checkpoint with a tokenizer, ready for `pippin serve`."""
    write_tiny_tokenizer(folder)
    vocab_size = 1 + json.loads((folder / "tokenizer.json").read_text())["added_tokens"][-1]["id"]
    return write_model(folder, name, vocab_size=vocab_size, **changes)


def write_quantized_model(folder: Path, name: str, bits: int = 4, group_size: int = 32, **changes: Any) -> Path:
    """Write the named checkpoint with quantized weights, as mlx_lm.convert does."""
    import mlx.core as mx
    import mlx.nn as nn
    from mlx.utils import tree_flatten

    write_model(folder, name, **changes)
    config = json.loads((folder / "config.json").read_text())
    module = importlib.import_module(f"mlx_lm.models.{config['model_type']}")
    model = module.Model(module.ModelArgs.from_dict(config))
    model.load_weights(str(folder / "model.safetensors"))
    nn.quantize(model, group_size, bits, class_predicate=lambda path, layer: _divides(layer, group_size))
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())), {"format": "mlx"})
    (folder / "config.json").write_text(
        json.dumps({**config, "quantization": {"group_size": group_size, "bits": bits}})
    )
    return folder


def _divides(layer: Any, group_size: int) -> bool:
    return hasattr(layer, "to_quantized") and layer.weight.shape[-1] % group_size == 0


def write_model(folder: Path, name: str, seed: int = 0, **changes: Any) -> Path:
    """Write the named checkpoint (no tokenizer) into `folder`; `changes` override its config."""
    import mlx.core as mx
    from mlx.utils import tree_flatten, tree_map

    config = {**COMMON, "eos_token_id": 0, **CONFIGS[name], **changes}
    folder.mkdir(parents=True, exist_ok=True)
    module = importlib.import_module(f"mlx_lm.models.{config['model_type']}")
    mx.random.seed(seed)
    model = module.Model(module.ModelArgs.from_dict(config))

    def randomize(parameter: Any) -> Any:
        if parameter.ndim < 2:
            return parameter.astype(mx.float32)
        return mx.random.normal(parameter.shape) * (2.0 / parameter.shape[-1] ** 0.5)

    model.update(tree_map(randomize, model.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())), {"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(config))
    return folder
