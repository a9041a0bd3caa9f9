"""Tiny models as GGUF files: a checkpoint in mlx-lm's format, with the names and order of llama.cpp's converter."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests.gguf_writer import Raw, encode, write
from tests.tiny_models import write_model
from tests.tiny_tokenizer import write_tiny_tokenizer

QWEN3 = {"model_type": "qwen3", "tie_word_embeddings": False}
QWEN3_MOE = {
    "model_type": "qwen3_moe",
    "tie_word_embeddings": False,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "moe_intermediate_size": 32,
    "norm_topk_prob": True,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {
    "type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 512,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"rope_theta": 500000.0, "rope_scaling": LLAMA3}),
    "qwen2": ("llama", {"model_type": "qwen2"}),
    "qwen3": ("llama", QWEN3),
    "qwen3moe": ("llama", QWEN3_MOE),
    "deepseek2": ("deepseek_v3", {"rope_scaling": YARN}),
}
"""By architecture: the tiny model, and its changes."""

_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.q_a_proj": "attn_q_a",
    "self_attn.q_a_layernorm": "attn_q_a_norm",
    "self_attn.q_b_proj": "attn_q_b",
    "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa",
    "self_attn.kv_a_layernorm": "attn_kv_a_norm",
    "self_attn.embed_q": "attn_k_b",
    "self_attn.unembed_out": "attn_v_b",
    "self_attn.kv_b_proj": "attn_kv_b",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
    "mlp.switch_mlp.gate_proj": "ffn_gate_exps",
    "mlp.switch_mlp.up_proj": "ffn_up_exps",
    "mlp.switch_mlp.down_proj": "ffn_down_exps",
    "mlp.shared_experts.gate_proj": "ffn_gate_shexp",
    "mlp.shared_experts.up_proj": "ffn_up_shexp",
    "mlp.shared_experts.down_proj": "ffn_down_shexp",
}
_FLOAT_NAMES = ("norm", "ffn_gate_inp", "bias")
"""Tensors with these in their names are not quantized, as in llama.cpp."""


def write_original(folder: Path, architecture: str, *, seed: int = 0, **changes: Any) -> Path:
    """Write the tiny model of an architecture, with a tokenizer and an embedding for each of its tokens."""
    write_tiny_tokenizer(folder)
    vocab_size = 1 + json.loads((folder / "tokenizer.json").read_text())["added_tokens"][-1]["id"]
    name, own = MODELS[architecture]
    eos = json.loads((folder / "config.json").read_text())["eos_token_id"]
    return write_model(folder, name, seed, **{**own, "vocab_size": vocab_size, "eos_token_id": eos, **changes})


def write_gguf(
    path: Path,
    original: Path,
    architecture: str,
    kind: Callable[[str], str] | str = "F32",
    change: Callable[[dict[str, Any], dict[str, Raw]], None] | None = None,
) -> Path:
    """Write a folder's model as a GGUF file. `kind`: the type of a tensor that may be quantized, by its name.

    `change` may modify the metadata and tensors.
    """
    config = json.loads((original / "config.json").read_text())
    choose = (lambda name: kind) if isinstance(kind, str) else kind
    tensors = {}
    for name, values in _tensors(original, config, architecture):
        is_plain = values.ndim < 2 or any(part in name for part in _FLOAT_NAMES)
        wanted = "F32" if is_plain else choose(name)
        tensors[name] = encode(values, "F32" if values.shape[-1] % 32 else wanted)
    metadata = {**_metadata(config, architecture), **tokenizer_metadata(original)}
    if change is not None:
        change(metadata, tensors)
    return write(path, metadata, tensors)


def _tensors(original: Path, config: Mapping[str, Any], architecture: str) -> Iterator[tuple[str, Any]]:
    import mlx.core as mx

    for name, array in mx.load(str(original / "model.safetensors")).items():
        values = np.array(array.astype(mx.float32))
        if name.endswith("e_score_correction_bias"):
            yield re.sub(r"model\.layers\.(\d+)\..*", r"blk.\1.exp_probs_b.bias", name), values
            continue
        base, _, last = name.rpartition(".")
        found = re.fullmatch(r"model\.layers\.(\d+)\.(.*)", base)
        renamed = f"blk.{found[1]}.{_NAMES[found[2]]}" if found else _NAMES[base]
        heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
        part = renamed.rpartition(".")[2]
        if architecture == "llama" and part in heads:  # pairs that are rotated together become neighbours
            number = heads[part]
            in_halves = values.reshape(number, 2, values.shape[0] // number // 2, *values.shape[1:])
            values = in_halves.swapaxes(1, 2).reshape(values.shape)
        yield f"{renamed}.{last}", values
    scaling = config.get("rope_scaling") or {}
    if scaling.get("rope_type") == "llama3":
        yield "rope_freqs.weight", _llama3_factors(config, scaling)


def _llama3_factors(config: Mapping[str, Any], scaling: Mapping[str, Any]) -> Any:
    """Return a factor for each frequency, as llama.cpp's converter computes them."""
    size, found = config["head_dim"], []
    context = scaling["original_max_position_embeddings"]
    for place in range(0, size, 2):
        length = 2 * np.pi * config["rope_theta"] ** (place / size)
        if length < context / scaling["high_freq_factor"]:
            found.append(1.0)
        elif length > context / scaling["low_freq_factor"]:
            found.append(scaling["factor"])
        else:
            low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
            smooth = (context / length - low) / (high - low)
            found.append(1 / ((1 - smooth) / scaling["factor"] + smooth))
    return np.array(found, np.float32)


def _metadata(config: Mapping[str, Any], architecture: str) -> dict[str, Any]:
    values = {
        "block_count": config["num_hidden_layers"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        "rope.freq_base": config["rope_theta"],
    }
    if architecture in ("llama", "qwen3", "qwen3moe"):
        values |= {"attention.key_length": config["head_dim"], "attention.value_length": config["head_dim"]}
    if architecture == "qwen3moe":
        values |= {
            "expert_count": config["num_experts"],
            "expert_used_count": config["num_experts_per_tok"],
            "expert_feed_forward_length": config["moe_intermediate_size"],
        }
    if architecture == "deepseek2":
        values |= _of_deepseek(config)
    return {"general.architecture": architecture, **{f"{architecture}.{key}": each for key, each in values.items()}}


def _of_deepseek(config: Mapping[str, Any]) -> dict[str, Any]:
    scaling, rotated = config["rope_scaling"], config["qk_rope_head_dim"]
    return {
        "attention.head_count_kv": 1,
        "attention.key_length": config["kv_lora_rank"] + rotated,
        "attention.value_length": config["kv_lora_rank"],
        "attention.key_length_mla": config["qk_nope_head_dim"] + rotated,
        "attention.value_length_mla": config["v_head_dim"],
        "attention.q_lora_rank": config["q_lora_rank"] or 0,
        "attention.kv_lora_rank": config["kv_lora_rank"],
        "rope.dimension_count": rotated,
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": scaling["factor"],
        "rope.scaling.original_context_length": scaling["original_max_position_embeddings"],
        "rope.scaling.yarn_log_multiplier": 0.1 * scaling["mscale_all_dim"],
        "expert_count": config["n_routed_experts"],
        "expert_used_count": config["num_experts_per_tok"],
        "expert_shared_count": config["n_shared_experts"],
        "expert_feed_forward_length": config["moe_intermediate_size"],
        "expert_weights_scale": config["routed_scaling_factor"],
        "expert_weights_norm": True,
        "expert_gating_func": 2,
        "expert_group_count": config["n_group"],
        "expert_group_used_count": config["topk_group"],
        "leading_dense_block_count": config["first_k_dense_replace"],
    }


def tokenizer_metadata(original: Path) -> dict[str, Any]:
    """Return a folder's tokenizer as GGUF metadata."""
    tokenizer = json.loads((original / "tokenizer.json").read_text())
    settings = json.loads((original / "tokenizer_config.json").read_text())
    ids = dict(tokenizer["model"]["vocab"])
    kinds = dict.fromkeys(ids.values(), 1)
    for token in tokenizer["added_tokens"]:
        ids[token["content"]] = token["id"]
        kinds[token["id"]] = 3 if token["special"] else 4
    tokens = sorted(ids, key=lambda token: ids[token])
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [kinds[ids[token]] for token in tokens],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in tokenizer["model"]["merges"]],
        "tokenizer.ggml.eos_token_id": json.loads((original / "config.json").read_text())["eos_token_id"],
        "tokenizer.chat_template": settings["chat_template"],
    }
