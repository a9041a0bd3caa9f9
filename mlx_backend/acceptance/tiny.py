"""Small random models, one for each kind of KV cache, in mlx-lm's format. Their output is only compared."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map

VOCAB_SIZE = 320
WINDOW = 32
COMMON: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_hidden_layers": 2,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 2048,
    "eos_token_id": 0,
}
KINDS: dict[str, dict[str, Any]] = {
    "plain": {"model_type": "llama", "tie_word_embeddings": True},
    "plain, fused head size": {"model_type": "llama", "hidden_size": 256, "head_dim": 64, "tie_word_embeddings": True},
    "latent": {
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
    "sliding-window, with sinks": {
        "model_type": "gpt_oss",
        "intermediate_size": 32,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": WINDOW,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "sliding-window": {
        "model_type": "gemma3_text",
        "query_pre_attn_scalar": 16,
        "sliding_window": WINDOW,
        "sliding_window_pattern": 2,
        "rms_norm_eps": 1e-6,
    },
    "recurrent": {
        "model_type": "mamba2",
        "num_heads": 8,
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
    "recurrent, with attention": {
        "model_type": "falcon_h1",
        "mamba_d_ssm": 64,
        "mamba_d_head": 16,
        "mamba_n_heads": 4,
        "mamba_d_state": 16,
        "mamba_expand": 1,
    },
    "ChunkedKVCache": {
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
"""Configurations by the kind's name in `kv_cache.spec`, plus what is particular."""


def build(kind: str) -> Any:
    """Return the model of a kind with random weights, the same in every process. Call it on a CPU stream."""
    config = {**COMMON, **KINDS[kind]}
    module = importlib.import_module(f"mlx_lm.models.{config['model_type']}")
    mx.random.seed(0)
    model = module.Model(module.ModelArgs.from_dict(config))
    model.update(tree_map(_randomized, model.parameters()))
    mx.eval(model.parameters())
    return model


def write(model: Any, kind: str, folder: Path) -> Path:
    """Write the model as a checkpoint that the engine loads."""
    folder.mkdir(parents=True)
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())), {"format": "mlx"})
    (folder / "config.json").write_text(json.dumps({**COMMON, **KINDS[kind]}))
    return folder


def _randomized(parameter: Any) -> Any:
    if parameter.ndim < 2:
        return parameter.astype(mx.float32)
    return mx.random.normal(parameter.shape) * (2.0 / parameter.shape[-1] ** 0.5)
