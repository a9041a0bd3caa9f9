"""Embedding settings of a model folder: sentence-transformers' modules.json, and the pooling of a prompt's vector.

No MLX. A folder without them, or with unsupported ones, serves completions alone: that is a reason in words, not an
error.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mlx_backend.model.checkpoint import Checkpoint

Place = Literal["last", "first", "mean"]

_PLACES: Mapping[str, Place] = {
    "lasttoken": "last",
    "cls": "first",
    "cls_token": "first",
    "mean": "mean",
    "mean_tokens": "mean",
}
"""By the names in sentence-transformers, the older ones without their `pooling_mode_`."""
_FLAG = "pooling_mode_"


@dataclass(frozen=True, slots=True)
class Pooling:
    """The hidden states that become the vector; whether it is then normalized to length 1."""

    place: Place
    is_normalized: bool


def is_embedding_model(path: Path) -> bool:
    """Return whether sentence-transformers wrote the folder."""
    return (path / "modules.json").is_file()


def read_pooling(checkpoint: Checkpoint) -> Pooling | str:
    """Return the pooling of a model, or the reason why it makes no vectors."""
    path = checkpoint.path
    if not is_embedding_model(path):
        return "its folder has no modules.json, in which embedding models define their pooling"
    if checkpoint.config.get("use_bidirectional_attention") or checkpoint.config.get("is_causal") is False:
        return "its attention is bidirectional, which mlx-lm does not implement"
    try:
        modules = {str(module["type"]).rpartition(".")[2]: path / module["path"] for module in _read(path)}
        if list(modules) not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
            return f"its modules.json needs {', '.join(modules)}; only Transformer, Pooling and Normalize are supported"
        asked = _asked(_read(modules["Pooling"], "config.json"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"its modules.json, or a file that it names, cannot be read ({type(error).__name__}: {error})"
    if len(asked) != 1 or asked[0] not in _PLACES:
        return f"its pooling is {' and '.join(asked) or 'nothing'}; only one of lasttoken, mean and cls is supported"
    return Pooling(_PLACES[asked[0]], "Normalize" in modules)


def _read(folder: Path, name: str = "modules.json") -> Any:
    return json.loads((folder / name).read_text(encoding="utf-8"))


def _asked(config: Mapping[str, Any]) -> list[str]:
    """Return the enabled modes: older files have a flag for each, newer ones a name or a list of them."""
    named = config.get("pooling_mode", [])
    flags = [key.removeprefix(_FLAG) for key, value in config.items() if key.startswith(_FLAG) and value is True]
    return flags or ([named] if isinstance(named, str) else [str(name) for name in named])
