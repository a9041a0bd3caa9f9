"""The table of KV-cache kinds: which of mlx-lm's caches a model makes, and which class of ours batches it.

No MLX here: caches are told apart by the name of their class.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class CacheKind:
    """One kind: its public name, and the module and class that hold rows of it."""

    name: str
    module: str
    rows_class: str


KINDS = {
    "KVCache": CacheKind("plain", "mlx_backend.kv_cache.plain", "PlainRows"),
    "RotatingKVCache": CacheKind("sliding-window", "mlx_backend.kv_cache.rotating", "RingRows"),
    "ArraysCache": CacheKind("recurrent", "mlx_backend.kv_cache.recurrent", "StateRows"),
}
"""By the class that mlx-lm's `make_prompt_cache` returns. A CacheList holds several of these per layer."""


def leaves(cache: Any) -> Iterator[Any]:
    """The caches of one layer: itself, or the members of a CacheList."""
    if type(cache).__name__ == "CacheList":
        for member in cache.caches:
            yield from leaves(member)
    else:
        yield cache


def unbatched_reason(caches: Iterable[Any]) -> str | None:
    """Why these caches (a layer each) cannot be batched; None where they can."""
    for cache in caches:
        for leaf in leaves(cache):
            name = type(leaf).__name__
            if name not in KINDS:
                return f"its KV cache is of a kind that cannot be batched ({name})"
            if getattr(leaf, "keep", 0):
                return f"its sliding-window cache keeps the first {leaf.keep} tokens, which cannot be batched"
    return None
