"""A model's shape, read from the model itself: built lazily by mlx-lm, from a folder or from a config alone.

Nothing is evaluated, so a model of any size takes a second and some hundred MB. Exact to the byte if the weights'
headers are there; from a config alone, as exact as its quantization section.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm import utils as mlx_lm_utils
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear

from mlx_backend.api.errors import ModelLoadError
from mlx_backend.kv_cache import attention, latent_attention
from mlx_backend.kv_cache.build import read_shapes
from mlx_backend.kv_cache.plan import CacheShape
from mlx_backend.kv_cache.spec import leaves
from mlx_backend.model.checkpoint import Checkpoint, context_length
from mlx_backend.model.loader import build_model
from mlx_backend.planning.memory import AttentionShape, ModelShape

_CHOSEN_EXPERTS = ("num_experts_per_tok", "num_experts_per_token", "experts_per_token", "moe_topk", "top_k_experts")
_EXPERTS = (SwitchLinear, QuantizedSwitchLinear)
_GROWTH_TOKENS = 2048
"""Longer than the windows of models with their own kinds of cache, so that a window counts once."""
_EMBEDDINGS = (nn.Embedding, nn.QuantizedEmbedding)


@dataclass(frozen=True, slots=True)
class Skeleton:
    """A model without the values of its weights: the shape that memory depends on, and that of every KV cache."""

    shape: ModelShape
    caches: tuple[CacheShape, ...]


@dataclass(frozen=True, slots=True)
class Quantization:
    """Affine quantization of all quantizable weights, `bits` per number in groups of `group_size`."""

    bits: int
    group_size: int


def from_checkpoint(checkpoint: Checkpoint) -> Skeleton:
    """Read a model folder, with the sizes of weights from the files' headers. Raises ModelLoadError."""
    return read_model(build_model(checkpoint), checkpoint.config)


def from_config(config: Mapping[str, Any], quantization: Quantization | None = None) -> Skeleton:
    """Read a config.json alone, with the given quantization, that of its `quantization` section, or bfloat16.

    Raises ModelLoadError for an architecture that mlx-lm does not support.
    """
    return read_model(build_from_config(config, quantization), config)


def build_from_config(config: Mapping[str, Any], quantization: Quantization | None = None) -> nn.Module:
    """Build the model of a config.json alone; its weights are never computed. Raises ModelLoadError."""
    own = {**config}
    try:
        model_class, arguments_class = mlx_lm_utils._get_classes(own)
        model = model_class(arguments_class.from_dict(own))
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
        what = f"{type(error).__name__}: {error}"
        raise ModelLoadError(
            f"config.json of model_type {config.get('model_type')!r} does not describe a valid model ({what})"
        ) from error
    model.set_dtype(mx.bfloat16)
    section = config.get("quantization") if quantization is None else None
    if quantization is not None:
        section = {"bits": quantization.bits, "group_size": quantization.group_size}
    if section:
        _quantize(model, section)
    built: nn.Module = model
    return built


def _quantize(model: nn.Module, section: Mapping[str, Any]) -> None:
    """Quantize as mlx-lm's loader does: every possible weight, except as the section specifies."""

    def how(path: str, module: nn.Module) -> Any:
        if path in section:
            return section[path]
        last = getattr(module, "weight", None)
        return hasattr(module, "to_quantized") and last is not None and last.shape[-1] % section["group_size"] == 0

    nn.quantize(model, section["group_size"], section["bits"], mode=section.get("mode", "affine"), class_predicate=how)


def read_model(model: Any, config: Mapping[str, Any]) -> Skeleton:
    """Read a built model, whether its weights are in memory or not."""
    caches = make_prompt_cache(model)
    logits = model(mx.zeros((1, 1), dtype=mx.int32), cache=caches)
    text = {**config, **(config.get("text_config") or {})}
    shapes = _with_growth(read_shapes(caches, text), model, caches)
    parts = list(_parts(model, text))
    return Skeleton(
        ModelShape(
            model_type=str(config.get("model_type")),
            num_parameters=round(sum(part.num_parameters for part in parts)),
            weights_bytes=sum(array.nbytes for _, array in tree_flatten(model.parameters())),
            active_parameters=round(sum(part.active_parameters for part in parts)),
            active_bytes=round(sum(part.active_bytes for part in parts)),
            routed_active_bytes=round(sum(part.active_bytes for part in parts if part.routed_share)),
            routed_share=max((part.routed_share for part in parts), default=0.0),
            num_layers=len(caches),
            hidden_size=int(text.get("hidden_size") or max(part.width for part in parts)),
            widest=max((part.width for part in parts), default=0),
            vocab_size=int(logits.shape[-1]),
            context_length=context_length(config),
            itemsize=logits.itemsize,
            attention=_grouped(_attention(shapes, text, has_sinks=_has_sinks(model)), model),
            ssm_heads=_ssm_heads(model),
            num_full_attention_layers=sum(cache.keys is not None and cache.window is None for cache in shapes),
            index_bytes=max((_index_bytes(module, logits.itemsize) for module in model.modules()), default=0.0),
        ),
        shapes,
    )


@dataclass(frozen=True, slots=True)
class _Part:
    """A module with its own weights: the part of it that a token uses, and the numbers per token of its output."""

    num_parameters: float
    active_parameters: float
    active_bytes: float
    width: int
    routed_share: float
    """The share of routed experts that a token chooses; 0 for other modules."""


def _parts(model: Any, config: Mapping[str, Any]) -> Iterator[_Part]:
    modules = dict(model.named_modules())
    is_tied = not any(name.endswith("lm_head") for name in modules)
    chosen = next((int(config[key]) for key in _CHOSEN_EXPERTS if config.get(key)), 1)
    for module in modules.values():
        arrays = [v for name, v in module.items() if isinstance(v, mx.array) and not name.startswith("_")]
        if not arrays:
            continue
        share, width, routed = 1.0, 0, 0.0
        if isinstance(module, _EXPERTS):
            share = routed = min(1.0, chosen / module.num_experts)
            width = chosen * module.weight.shape[-2]
        elif isinstance(module, _EMBEDDINGS):
            share = 1.0 if is_tied else 1 / module.weight.shape[0]
        elif "weight" in module and module.weight.ndim == 2 and module.weight.shape[0] != config.get("vocab_size"):
            width = module.weight.shape[0]
        numbers = float(sum(array.size for array in arrays))
        if "scales" in module:  # packed integers of 32 bits
            numbers = module.weight.size * 32 / module.bits
        yield _Part(numbers, share * numbers, share * sum(array.nbytes for array in arrays), width, routed)


def _with_growth(shapes: tuple[CacheShape, ...], model: Any, caches: list[Any]) -> tuple[CacheShape, ...]:
    """Return the shapes, adding a token's bytes to those without keys and values, from two more forward passes."""
    if all(shape.is_known or shape.keys is not None for shape in shapes):
        return shapes
    held = [_forward(model, caches, num_tokens) for num_tokens in (_GROWTH_TOKENS - 1, _GROWTH_TOKENS)]
    grown = []
    for shape, first, second in zip(shapes, *held, strict=True):
        if not shape.is_known and shape.keys is None:
            token_bytes = max(0, -(-(second - first) // _GROWTH_TOKENS))
            shape = replace(shape, token_bytes=token_bytes, state_bytes=max(0, first - token_bytes * _GROWTH_TOKENS))
        grown.append(shape)
    return tuple(grown)


def _forward(model: Any, caches: list[Any], num_tokens: int) -> list[int]:
    """Return the bytes of every cache after this many more tokens, which are not computed."""
    model(mx.zeros((1, num_tokens), dtype=mx.int32), cache=caches)
    return [int(leaf.nbytes) for cache in caches for leaf in leaves(cache)]


def _has_sinks(model: Any) -> bool:
    return any(isinstance(module.get("sinks"), mx.array) for module in model.modules())


def _ssm_heads(model: Any) -> int:
    """Return the heads of the widest layer that computes a chunk as mlx-lm's `ssm_attn` does; 0 if there is none."""
    return max((module["A_log"].size for module in model.modules() if _is_ssm(module)), default=0)


def _is_ssm(module: Any) -> bool:
    return "A_log" in module and hasattr(sys.modules[type(module).__module__], "ssm_update")


def _index_bytes(module: Any, itemsize: int) -> float:
    """Return the bytes of an indexer per token of a chunk and token of the context: its heads' scores, and copies.

    In mlx-lm 0.32.2, deepseek_v32 and glm_moe_dsa keep one copy in the model's dtype and sum it head by head (measured:
    1.05 to 1.3 with 16 heads and more, and a few bytes); deepseek_v41, with groups of tokens as keys, and minimax_m3,
    which widens its mask to every head, score in float32.
    """
    if hasattr(module, "index_topk") and hasattr(module, "n_heads"):
        return float(1.25 * module.n_heads * itemsize + 8)
    if hasattr(module, "index_topk") and hasattr(module, "num_heads"):
        return float(2 * 4 * module.num_heads / max(getattr(module, "ratio", 1), 1))
    if hasattr(module, "index_block_size") and hasattr(module, "index_q_proj"):
        return float(2 * 4 * module.index_n_heads + module.num_attention_heads)
    return 0.0


def _grouped(shape: AttentionShape | None, model: Any) -> AttentionShape | None:
    if shape is None or not shape.is_latent:
        return shape
    attention.install()
    return replace(shape, is_grouped=latent_attention.takes_groups(model))


def _attention(
    caches: tuple[CacheShape, ...], config: Mapping[str, Any], *, has_sinks: bool = False
) -> AttentionShape | None:
    holding = [shape for shape in caches if shape.keys is not None and shape.values is not None]
    if not holding:
        return None
    num_heads = int(config.get("num_attention_heads") or 1)
    if any(shape.traits.is_latent for shape in holding):
        return AttentionShape(
            num_heads=num_heads,
            key_dim=int(config["qk_nope_head_dim"]),
            value_dim=int(config["v_head_dim"]),
            rope_dim=int(config["qk_rope_head_dim"]),
            latent_dim=int(config["kv_lora_rank"]),
            is_latent=True,
        )
    key_dim = max(shape.keys.dim for shape in holding if shape.keys)
    value_dim = max(shape.values.dim for shape in holding if shape.values)
    return AttentionShape(num_heads=num_heads, key_dim=key_dim, value_dim=value_dim, has_sinks=has_sinks)
