"""Tiny configs of all mlx-lm models that cache latents in attention: random weights, for equality tests."""

from __future__ import annotations

import importlib
from typing import Any

_LATENT: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "kv_lora_rank": 32,
    "q_lora_rank": 32,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 2048,
    "rope_scaling": None,
}
_EXPERTS: dict[str, Any] = {
    "moe_intermediate_size": 32,
    "n_shared_experts": 1,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "routed_scaling_factor": 1.0,
    "first_k_dense_replace": 1,
    "norm_topk_prob": True,
}
_BAILING: dict[str, Any] = {
    "num_experts": 4,
    "num_shared_experts": 1,
    "layer_group_size": 2,
    "group_norm_size": 2,
    "head_dim": 16,
    "moe_shared_expert_intermediate_size": 32,
}
_LINEAR_ATTENTION: dict[str, Any] = {
    "linear_attn_config": {
        "kda_layers": [1],
        "full_attn_layers": [2],
        "num_heads": 2,
        "head_dim": 32,
        "short_conv_kernel_size": 4,
    },
    "num_experts": 4,
    "num_experts_per_token": 2,
    "num_shared_experts": 1,
    "head_dim": 16,
    "model_max_length": 2048,
}

CONFIGS: dict[str, dict[str, Any]] = {
    "deepseek_v3": {**_LATENT, **_EXPERTS},
    "deepseek_v32": {**_LATENT, **_EXPERTS, "index_topk": 16, "index_n_heads": 2, "index_head_dim": 32},
    "glm4_moe_lite": {**_LATENT, **_EXPERTS, "v_head_dim": 32},
    "kimi_linear": {**_LATENT, **_EXPERTS, **_LINEAR_ATTENTION},
    "kimi_k3": {**_LATENT, **_EXPERTS, **_LINEAR_ATTENTION, "routed_expert_hidden_size": 32},
    "longcat_flash": {
        **_LATENT,
        **_EXPERTS,
        "num_layers": 2,
        "attention_method": "MLA",
        "zero_expert_type": "identity",
        "ffn_hidden_size": 64,
        "expert_ffn_hidden_size": 32,
        "moe_topk": 2,
        "zero_expert_num": 2,
        "mla_scale_q_lora": True,
        "mla_scale_kv_lora": True,
        "attention_bias": False,
    },
    "mistral4": {
        **_LATENT,
        **_EXPERTS,
        "rope_parameters": {
            "rope_theta": 10000.0,
            "rope_type": "default",
            "llama_4_scaling_beta": 0.1,
            "original_max_position_embeddings": 64,
        },
    },
    "bailing_hybrid": {**_LATENT, **_EXPERTS, **_BAILING},
    "bailing_moe_v3": {**_LATENT, **_EXPERTS, **_BAILING, "num_attention_heads": 4, "short_conv_kernel_size": 4},
}
GROUPED = tuple(name for name in CONFIGS if name != "mistral4")
"""Models that do not use a chunk's latents in their own code; mistral4's joins keys and rotary parts."""


def build_latent_model(name: str, seed: int = 0, **changes: Any) -> Any:
    """Build one of them, in float32."""
    import mlx.core as mx
    from mlx.utils import tree_map

    config = {"model_type": name, **CONFIGS[name], **changes}
    module = importlib.import_module(f"mlx_lm.models.{name}")
    mx.random.seed(seed)
    model = module.Model(module.ModelArgs.from_dict(config))

    def randomize(parameter: Any) -> Any:
        if parameter.ndim < 2:
            return parameter.astype(mx.float32)
        return mx.random.normal(parameter.shape) * (2.0 / parameter.shape[-1] ** 0.5)

    model.update(tree_map(randomize, model.parameters()))
    mx.eval(model.parameters())
    return model
