"""Read the context length from a model's config.json, with the scaling of its rotary embedding. No MLX."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "seq_length", "n_ctx")
_SECTIONS = ("text_config", "language_config", "llm_config")
_YARN = frozenset({"yarn", "deepseek_yarn", "telechat3-yarn"})
_STRETCHED = frozenset({"linear", "dynamic"})
_TOLD_WHOLE = ("gemma3", "gemma4")
"""Families with a length that already includes a linear scaling."""
_MOST_FACTOR = 10_000
_MOST_TOKENS = 1 << 40
_WITHOUT_LIMIT = 131_072
"""For models without a context length (recurrent ones have none)."""


def context_length(config: Mapping[str, Any]) -> int:
    """Return the context length of a config.json, in tokens, extended by the scaling of its rotary embedding.

    Some kinds give the length before scaling: `yarn` as its `original_max_position_embeddings`, `linear` and `dynamic`
    as that or as the length itself. For others (`llama3`, `longrope`) the length is already the final one.
    """
    for section in (config, *(config.get(name) for name in _SECTIONS)):
        if not isinstance(section, Mapping):
            continue
        length = next((found for key in _CONTEXT_KEYS if (found := _whole(section.get(key)))), None)
        if length is not None:
            return max([length, *(_scaled(length, scaling, section) for scaling in _scalings(section))])
    return _WITHOUT_LIMIT


def _scalings(section: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the settings of the rotary embedding, which may differ from layer to layer."""
    for name in ("rope_scaling", "rope_parameters"):
        found = section.get(name)
        if isinstance(found, Mapping):
            yield found
            yield from (each for each in found.values() if isinstance(each, Mapping))


def _scaled(length: int, scaling: Mapping[str, Any], section: Mapping[str, Any]) -> int:
    kind, factor = str(scaling.get("rope_type", scaling.get("type"))), scaling.get("factor")
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not 1 <= factor <= _MOST_FACTOR:
        return 0
    original = _whole(scaling.get("original_max_position_embeddings"))
    if kind in _YARN:
        return int((original or length) * factor)
    if kind in _STRETCHED and not str(section.get("model_type")).startswith(_TOLD_WHOLE):
        return int((original or length) * factor)
    return 0


def _whole(value: object) -> int | None:
    """Return a length as an int, if valid; some configs write a float."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value <= _MOST_TOKENS:
        return None
    return int(value)
