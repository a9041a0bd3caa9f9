"""Rotary embedding of a GGUF file in config.json's form: its base and its scaling."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from server.importing.affine import Floats
from server.importing.metadata import Metadata
from server.importing.problems import CannotImport

_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""Settings shared by all published models with a factor per frequency."""


def scaling(metadata: Metadata) -> dict[str, Any] | None:
    """Return the `rope_scaling` of config.json. Raises CannotImport for an unknown kind."""
    kind = metadata.text(".rope.scaling.type", "none")
    factor = metadata.number(".rope.scaling.factor", None) or metadata.number(".rope.scale_linear", 1.0)
    if kind == "none" or (kind == "linear" and factor == 1):
        return None
    if kind == "linear":
        return {"rope_type": "linear", "type": "linear", "factor": factor}
    if kind != "yarn":
        raise CannotImport(f"the file's rotary embedding is scaled by {kind[:40]!r}; linear and yarn are known")
    attention = metadata.number(".rope.scaling.attn_factor", 1.0)
    if attention != 1:
        raise CannotImport(f"the file's {metadata.architecture}.rope.scaling.attn_factor is {attention}; 1 is known")
    found = {
        "rope_type": "yarn",
        "type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": metadata.whole(".rope.scaling.original_context_length"),
    }
    for key, name in ((".rope.scaling.yarn_beta_fast", "beta_fast"), (".rope.scaling.yarn_beta_slow", "beta_slow")):
        if metadata.has(key):
            found[name] = metadata.number(key)
    return found


def of_factors(factors: Floats, base: float) -> dict[str, Any]:
    """Return the `rope_scaling` that yields the factors per frequency of `rope_freqs.weight`.

    Raises CannotImport if none of the known kind does.
    """
    found = {"rope_type": "llama3", "factor": round(float(factors.max()), 4), **_LLAMA3}
    if not np.allclose(factors, _llama3_factors(len(factors), base, found), rtol=2e-3):
        raise CannotImport("the file's rope_freqs.weight is of no scaling that is known; Llama 3's is")
    return found


def _llama3_factors(number: int, base: float, settings: dict[str, Any]) -> Floats:
    lengths = 2 * math.pi * base ** (np.arange(number) / number)
    factor, low, high = settings["factor"], settings["low_freq_factor"], settings["high_freq_factor"]
    context = settings["original_max_position_embeddings"]
    share = np.clip((context / lengths - low) / (high - low), 0, 1)
    return np.asarray(1 / ((1 - share) / factor + share), np.float32)
