"""Supported architectures of GGUF files, each with a function from a file to its blueprint."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from server.importing import rope
from server.importing.blueprint import Blueprint, Weight, interleaved
from server.importing.deepseek import deepseek2
from server.importing.dequantize import values
from server.importing.layers import Tensors, ends, experts, feed_forward, layer, norm
from server.importing.metadata import Metadata
from server.importing.problems import CannotImport
from server.importing.rows import read_whole

_UNKNOWN_SETTINGS = (".logit_scale", ".embedding_scale", ".residual_scale", ".attention.scale")
"""Factors used by other models with the same architecture name, but by none of those supported here."""


def draw(metadata: Metadata, tensors: Tensors) -> Blueprint:
    """Return the blueprint of a file. Raises CannotImport for an unknown architecture or detail."""
    name = metadata.architecture
    if name not in KNOWN:
        message = f"the file's architecture is {name[:60]!r}, which is not known; known are {', '.join(KNOWN)}"
        raise CannotImport(message)
    for key in _UNKNOWN_SETTINGS:
        if metadata.raw(key) not in (None, 0, 0.0, 1, 1.0):
            raise CannotImport(f"the file's {name}{key} is {metadata.raw(key)}, which is not supported")
    blueprint = KNOWN[name](metadata, tensors)
    check(blueprint, tensors)
    return blueprint


def check(blueprint: Blueprint, tensors: Tensors) -> None:
    """Check that a file has exactly a blueprint's tensors, in the right shapes. Raises CannotImport."""
    wanted = {name: weight for weight in blueprint.weights for name in (weight.source, *weight.others)}
    missing = [name for name in wanted if name not in tensors]
    if missing:
        raise CannotImport(f"the file lacks the tensor {missing[0]!r} ({len(missing)} of {len(wanted)} are missing)")
    unknown = [name for name in tensors if name not in wanted and name not in blueprint.unused]
    if unknown:
        raise CannotImport(f"the file has the tensor {unknown[0]!r}, which is not known ({len(unknown)} are not)")
    for weight in blueprint.weights:
        found, shape = tensors[weight.source].shape, weight.source_shape or weight.shape
        if found != shape:
            raise CannotImport(
                f"the file's tensor {weight.source!r} has the shape {list(found)}, by its metadata {list(shape)}"
            )


def _heads(metadata: Metadata, config: dict[str, Any]) -> tuple[int, int, int]:
    """Return (query heads, key heads, head size). Raises CannotImport if they do not agree."""
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    num_kv = metadata.whole(".attention.head_count_kv", heads)
    head_dim = metadata.whole(".attention.key_length", None) or hidden // heads
    if metadata.whole(".attention.value_length", head_dim) != head_dim:
        raise CannotImport("the file's keys and values are of different lengths, which is not supported")
    rotated = metadata.whole(".rope.dimension_count", head_dim)
    if rotated != head_dim or head_dim % 2 or heads % num_kv:
        raise CannotImport(
            f"the file has {heads} heads of {head_dim} for {num_kv} of keys, {rotated} of them rotated: not supported"
        )
    return heads, num_kv, head_dim


def _attention(
    place: int, hidden: int, heads: tuple[int, int, int], biases: tuple[str, ...], is_interleaved: bool = False
) -> Iterator[Weight]:
    weight, (num_q, num_kv, head_dim) = layer(place), heads
    for source, number in (("q", num_q), ("k", num_kv), ("v", num_kv)):
        order = interleaved(number, head_dim) if is_interleaved and source != "v" else None
        target, rows = f"self_attn.{source}_proj", number * head_dim
        yield weight(f"attn_{source}.weight", target, rows, hidden, order=order)
        if source in biases:
            yield weight(f"attn_{source}.bias", f"{target}.bias", rows, form="plain", order=order)
    yield weight("attn_output.weight", "self_attn.o_proj", hidden, num_q * head_dim)
    if "output" in biases:
        yield weight("attn_output.bias", "self_attn.o_proj.bias", hidden, form="plain")


def _llama(metadata: Metadata, tensors: Tensors) -> Blueprint:
    if metadata.whole(".expert_count", 0, least=0):
        raise CannotImport("the file's architecture is llama with experts (Mixtral's), which is not supported")
    config, weights = ends(metadata, tensors)
    heads, hidden, inner = _heads(metadata, config), config["hidden_size"], metadata.whole(".feed_forward_length")
    has_biases = "blk.0.attn_q.bias" in tensors
    biases = tuple(name for name in ("q", "k", "v", "output") if f"blk.0.attn_{name}.bias" in tensors)
    if len(biases) not in (0, 4):
        raise CannotImport(f"the file has biases for {', '.join(biases)} of its attention alone: not supported")
    for place in range(config["num_hidden_layers"]):
        weights += _norms(place, hidden)
        weights += _attention(place, hidden, heads, biases, is_interleaved=True)
        weights += feed_forward(place, hidden, inner)
    config |= {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "intermediate_size": inner}
    config |= {"attention_bias": has_biases, "mlp_bias": False, "rope_scaling": rope.scaling(metadata)}
    _add_heads(config, heads)
    unused = frozenset({"rope_freqs.weight"} & tensors.keys())
    if unused:
        if tensors["rope_freqs.weight"].num_values != heads[2] // 2:
            raise CannotImport(f"the file's rope_freqs.weight has not {heads[2] // 2} factors, one for each frequency")
        factors = values(tensors["rope_freqs.weight"].type.name, read_whole(tensors["rope_freqs.weight"])).reshape(-1)
        config["rope_scaling"] = rope.of_factors(factors, config["rope_theta"])
    return Blueprint(config, weights, unused)


def _qwen2(metadata: Metadata, tensors: Tensors) -> Blueprint:
    config, weights = ends(metadata, tensors)
    heads, hidden, inner = _heads(metadata, config), config["hidden_size"], metadata.whole(".feed_forward_length")
    if heads[0] * heads[2] != hidden:
        raise CannotImport(f"the file has {heads[0]} heads of {heads[2]} in {hidden} dimensions: not supported")
    for place in range(config["num_hidden_layers"]):
        weights += _norms(place, hidden)
        weights += _attention(place, hidden, heads, ("q", "k", "v"))
        weights += feed_forward(place, hidden, inner)
    config |= {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "intermediate_size": inner}
    config |= {"num_key_value_heads": heads[1], "rope_scaling": rope.scaling(metadata)}
    return Blueprint(config, weights, is_wide=True)


def _qwen3(metadata: Metadata, tensors: Tensors) -> Blueprint:
    config, weights = ends(metadata, tensors)
    heads, hidden, inner = _heads(metadata, config), config["hidden_size"], metadata.whole(".feed_forward_length")
    for place in range(config["num_hidden_layers"]):
        weights += _normed_attention(place, hidden, heads)
        weights += feed_forward(place, hidden, inner)
    config |= {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "intermediate_size": inner}
    _add_heads(config, heads)
    return Blueprint({**config, "rope_scaling": rope.scaling(metadata)}, weights)


def _qwen3moe(metadata: Metadata, tensors: Tensors) -> Blueprint:
    config, weights = ends(metadata, tensors)
    heads, hidden = _heads(metadata, config), config["hidden_size"]
    number, inner = metadata.whole(".expert_count"), metadata.whole(".expert_feed_forward_length")
    for place in range(config["num_hidden_layers"]):
        weights += _normed_attention(place, hidden, heads)
        weights += experts(place, hidden, inner, number)
    config |= {
        "model_type": "qwen3_moe",
        "architectures": ["Qwen3MoeForCausalLM"],
        "intermediate_size": metadata.whole(".feed_forward_length", inner),
        "moe_intermediate_size": inner,
        "num_experts": number,
        "num_experts_per_tok": metadata.whole(".expert_used_count"),
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "rope_scaling": rope.scaling(metadata),
    }
    _add_heads(config, heads)
    return Blueprint(config, weights)


def _normed_attention(place: int, hidden: int, heads: tuple[int, int, int]) -> Iterator[Weight]:
    yield from _norms(place, hidden)
    yield from _attention(place, hidden, heads, ())
    yield norm(place, "attn_q_norm", "self_attn.q_norm", heads[2])
    yield norm(place, "attn_k_norm", "self_attn.k_norm", heads[2])


def _norms(place: int, hidden: int) -> Iterator[Weight]:
    yield norm(place, "attn_norm", "input_layernorm", hidden)
    yield norm(place, "ffn_norm", "post_attention_layernorm", hidden)


def _add_heads(config: dict[str, Any], heads: tuple[int, int, int]) -> None:
    config |= {"num_key_value_heads": heads[1], "head_dim": heads[2]}


KNOWN: dict[str, Callable[[Metadata, Tensors], Blueprint]] = {
    "llama": _llama,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "qwen3moe": _qwen3moe,
    "deepseek2": deepseek2,
}
"""Blueprint functions by the architecture's name in the file."""
