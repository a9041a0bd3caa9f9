"""Blueprint of DeepSeek's models with latent attention (`deepseek2` in GGUF files): V2, V3 and R1."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from server.importing import rope
from server.importing.affine import Floats
from server.importing.blueprint import Blueprint, Order, Weight
from server.importing.layers import Tensors, ends, experts, feed_forward, layer, norm
from server.importing.metadata import Metadata
from server.importing.problems import CannotImport

_SOFTMAX, _SIGMOID = 1, 2
_GROUPS = {256: (8, 4), 160: (8, 3)}
"""(groups, groups used) of the published models, by number of experts; older files do not contain them."""


def deepseek2(metadata: Metadata, tensors: Tensors) -> Blueprint:
    """Return the blueprint. Raises CannotImport."""
    config, weights = ends(metadata, tensors)
    is_third = _is_third(metadata, tensors)
    config |= _sizes(metadata, tensors)
    config |= _routing(metadata, is_third)
    config |= {
        "model_type": "deepseek_v3" if is_third else "deepseek_v2",
        "architectures": ["DeepseekV3ForCausalLM" if is_third else "DeepseekV2ForCausalLM"],
        "rope_scaling": _scaling(metadata, config["max_position_embeddings"], is_third),
        "attention_bias": False,
    }
    for place in range(config["num_hidden_layers"]):
        weights += _layer(place, config, tensors, is_third)
    past = range(config["num_hidden_layers"], metadata.whole(".block_count"))
    unused = frozenset(name for name in tensors if any(name.startswith(f"blk.{place}.") for place in past))
    notes = ["the layers that predict further tokens are left out"] if unused else []
    return Blueprint(config, weights, unused, is_wide=True, notes=notes)


def _is_third(metadata: Metadata, tensors: Tensors) -> bool:
    """Return whether the model is of V3's kind, with sigmoids in its router; V2's router has a softmax."""
    has_bias = any(name.endswith("exp_probs_b.bias") for name in tensors)
    gating = metadata.whole(".expert_gating_func", _SIGMOID if has_bias else _SOFTMAX)
    if gating not in (_SOFTMAX, _SIGMOID) or (gating == _SOFTMAX and has_bias):
        raise CannotImport(f"the file's router is of kind {gating}, which is not known")
    return bool(gating == _SIGMOID)


def _sizes(metadata: Metadata, tensors: Tensors) -> dict[str, Any]:
    rotated = metadata.whole(".rope.dimension_count")
    key = metadata.whole(".attention.key_length_mla", None) or metadata.whole(".attention.key_length")
    value = metadata.whole(".attention.value_length_mla", None) or metadata.whole(".attention.value_length")
    if key <= rotated:
        raise CannotImport(f"the file's keys have {key} dimensions, of which {rotated} are rotated")
    has_lora = "blk.0.attn_q_a.weight" in tensors
    return {
        "qk_rope_head_dim": rotated,
        "qk_nope_head_dim": key - rotated,
        "v_head_dim": value,
        "kv_lora_rank": metadata.whole(".attention.kv_lora_rank"),
        "q_lora_rank": metadata.whole(".attention.q_lora_rank") if has_lora else None,
        "num_key_value_heads": metadata.whole(".attention.head_count"),
        "intermediate_size": metadata.whole(".feed_forward_length"),
        "moe_intermediate_size": metadata.whole(".expert_feed_forward_length"),
    }


def _routing(metadata: Metadata, is_third: bool) -> dict[str, Any]:
    number = metadata.whole(".expert_count")
    groups, used = _GROUPS.get(number, (1, 1))
    groups = metadata.whole(".expert_group_count", groups)
    used = metadata.whole(".expert_group_used_count", used)
    second = "group_limited_greedy" if groups > 1 else "greedy"
    return {
        "n_routed_experts": number,
        "n_shared_experts": metadata.whole(".expert_shared_count", None),
        "num_experts_per_tok": metadata.whole(".expert_used_count"),
        "routed_scaling_factor": metadata.number(".expert_weights_scale", 1.0),
        "norm_topk_prob": metadata.flag(".expert_weights_norm", is_third),
        "scoring_func": "sigmoid" if is_third else "softmax",
        "topk_method": "noaux_tc" if is_third else second,
        "n_group": groups,
        "topk_group": used,
        "first_k_dense_replace": metadata.whole(".leading_dense_block_count", 0, least=0),
        "moe_layer_freq": 1,
    }


def _scaling(metadata: Metadata, context: int, is_third: bool) -> dict[str, Any] | None:
    """Return the scaling. V2's code supports only YaRN, which has no effect with factor 1. Raises CannotImport."""
    found = rope.scaling(metadata)
    if found is None and not is_third:
        return {"rope_type": "yarn", "type": "yarn", "factor": 1.0, "original_max_position_embeddings": context}
    if found is None or found["type"] != "yarn":
        if not is_third:
            raise CannotImport("the file's rotary embedding is scaled linearly, which DeepSeek-V2 is not served with")
        return found
    # stored as the factor of a logarithm: a tenth of mscale
    mscale = round(10 * metadata.number(".rope.scaling.yarn_log_multiplier", 0.1), 6)
    return {"beta_fast": 32, "beta_slow": 1, **found, "mscale": mscale, "mscale_all_dim": mscale}


def _layer(place: int, config: dict[str, Any], tensors: Tensors, is_third: bool) -> Iterator[Weight]:
    hidden = config["hidden_size"]
    yield norm(place, "attn_norm", "input_layernorm", hidden)
    yield norm(place, "ffn_norm", "post_attention_layernorm", hidden)
    yield from _attention(place, config, tensors, is_third)
    if place < config["first_k_dense_replace"]:
        yield from feed_forward(place, hidden, config["intermediate_size"])
        return
    inner, number = config["moe_intermediate_size"], config["n_routed_experts"]
    yield from experts(place, hidden, inner, number)
    if is_third:
        yield layer(place)("exp_probs_b.bias", "mlp.gate.e_score_correction_bias", number, form="exact")
    if config["n_shared_experts"]:
        shared = inner * config["n_shared_experts"]
        yield from feed_forward(place, hidden, shared, suffix="_shexp", under="mlp.shared_experts")


def _attention(place: int, config: dict[str, Any], tensors: Tensors, is_third: bool) -> Iterator[Weight]:
    weight, hidden, heads = layer(place), config["hidden_size"], config["num_attention_heads"]
    latent, rotated = config["kv_lora_rank"], config["qk_rope_head_dim"]
    queries, rank = heads * (config["qk_nope_head_dim"] + rotated), config["q_lora_rank"]
    if rank is None:
        yield weight("attn_q.weight", "self_attn.q_proj", queries, hidden)
    else:
        yield weight("attn_q_a.weight", "self_attn.q_a_proj", rank, hidden)
        yield norm(place, "attn_q_a_norm", "self_attn.q_a_layernorm", rank)
        yield weight("attn_q_b.weight", "self_attn.q_b_proj", queries, rank)
    yield weight("attn_kv_a_mqa.weight", "self_attn.kv_a_proj_with_mqa", latent + rotated, hidden)
    yield norm(place, "attn_kv_a_norm", "self_attn.kv_a_layernorm", latent)
    yield weight("attn_output.weight", "self_attn.o_proj", hidden, heads * config["v_head_dim"])
    yield from _expansion(place, config, f"blk.{place}.attn_kv_b.weight" in tensors, is_third)


def _expansion(place: int, config: dict[str, Any], is_joined: bool, is_third: bool) -> Iterator[Weight]:
    """Yield the weights from latents to keys and values: one matrix or two, in the file as in the model."""
    weight, heads, latent = layer(place), config["num_attention_heads"], config["kv_lora_rank"]
    keys, of_values = config["qk_nope_head_dim"], config["v_head_dim"]
    joined, in_keys, in_values = (f"blk.{place}.attn_{name}.weight" for name in ("kv_b", "k_b", "v_b"))

    def keys_of(found: Mapping[str, Floats]) -> Floats:
        return found[joined].reshape(heads, keys + of_values, latent)[:, :keys].swapaxes(1, 2)

    def rows_of_values() -> Order:
        return np.arange(rows).reshape(heads, keys + of_values)[:, keys:].reshape(-1)

    def both(found: Mapping[str, Floats]) -> Floats:
        in_rows = found[in_keys].reshape(heads, latent, keys).swapaxes(1, 2)
        return np.concatenate([in_rows, found[in_values].reshape(heads, of_values, latent)], axis=1)

    rows = heads * (keys + of_values)
    if is_joined and is_third:
        before: dict[str, Any] = {"source_shape": (rows, latent)}
        yield weight("attn_kv_b.weight", "self_attn.embed_q", heads, latent, keys, reshape=keys_of, **before)
        yield weight(
            "attn_kv_b.weight", "self_attn.unembed_out", heads, of_values, latent, order=rows_of_values, **before
        )
    elif is_joined:
        yield weight("attn_kv_b.weight", "self_attn.kv_b_proj", rows, latent)
    elif is_third:
        yield weight("attn_k_b.weight", "self_attn.embed_q", heads, latent, keys)
        yield weight("attn_v_b.weight", "self_attn.unembed_out", heads, of_values, latent)
    else:
        before = {"source_shape": (heads, latent, keys), "others": (in_values,)}
        yield weight("attn_k_b.weight", "self_attn.kv_b_proj", rows, latent, reshape=both, **before)
