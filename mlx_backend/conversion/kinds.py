"""Kinds of tensors, by their paths in the model: for recipes, reports and floors. Pure; no MLX."""

from __future__ import annotations

import re
from typing import Literal, get_args

Kind = Literal[
    "embeddings", "output head", "attention", "routed experts", "shared experts", "MLP", "router", "norms and others"
]
KINDS: tuple[str, ...] = get_args(Kind)

_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)(?:\.|$)")
_EMBEDDINGS = frozenset(
    ("embed_tokens", "wte", "embeddings", "tok_embeddings", "word_embeddings", "embed_in", "embedding", "embed")
)
_HEADS = frozenset(("lm_head", "embed_out", "output"))
_ROUTERS = frozenset(("gate", "router", "shared_expert_gate"))
_ROUTED = frozenset(("switch_mlp", "switch_glu", "experts", "switch"))
_SHARED = re.compile(r"shared_(?:experts?|mlp)$")
_ATTENTION = re.compile(r"(?:^|_)(?:attn|attention|mixer|mamba|conv)$|^(?:attn|attention|mamba)")
_MLP = re.compile(r"mlp$|^feed_forward$|^ffn?$|moe$|^feed_forward")


def kind_of(path: str) -> Kind:
    """Return the kind of the module at `path`, such as `model.layers.3.mlp.switch_mlp.down_proj`."""
    parts = path.split(".")
    if parts[-1] in _ROUTERS or parts[-2:-1] == ["router"]:
        return "router"
    if "norm" in parts[-1]:
        return "norms and others"
    tests: tuple[tuple[Kind, bool], ...] = (
        ("routed experts", any(part in _ROUTED for part in parts)),
        ("shared experts", any(_SHARED.search(part) for part in parts)),
        ("attention", any(_ATTENTION.search(part) for part in parts)),
        ("MLP", any(_MLP.search(part) for part in parts)),
        ("embeddings", parts[-1] in _EMBEDDINGS),
        ("output head", parts[-1] in _HEADS),
    )
    return next((kind for kind, is_it in tests if is_it), "norms and others")


def layer_of(path: str) -> int | None:
    """Return the number of the layer that a path is in; None outside the layers."""
    found = _LAYER.search(path)
    return int(found[1]) if found else None
