"""The table of KV-cache kinds: a row states the properties of a kind's caches, and names the module that handles them.

No MLX here: the class name identifies a cache, and a kind's module is imported when it is first needed. To add a kind,
write its module, with a `HANDLER` (see `handler.CacheHandler`), and add a row.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlx_backend.kv_cache.handler import CacheHandler


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheKind:
    """One kind: its public name, the classes of its single caches, and the properties for planning and storing."""

    name: str
    cache_classes: tuple[str, ...] = ()
    """Classes of mlx-lm or of the model, and those that hold the same quantized."""
    module: str = ""
    is_batched: bool = False
    """Whether rows of it decode together; otherwise its models are served one sequence at a time."""
    is_grouped: bool = False
    """Whether rows of it may lie in groups: models pass its keys, values and mask to attention unchanged."""
    is_cut: bool = False
    """Whether the prefix cache stores it by the token, so that it can be cut anywhere; otherwise as snapshots."""
    is_quantizable: bool = False
    is_state: bool = False
    """Whether it holds a state of constant size, not keys and values; the state stays unquantized."""
    is_latent: bool = False
    """Whether keys and values are one latent of one precision, expanded by attention; values: the keys' rotary part."""
    has_position_mask: bool = False
    """Whether a chunk's mask is made of matrices of positions, [chunk, context]."""
    part_names: tuple[str, str] = ("keys", "values")

    @property
    def handler(self) -> CacheHandler:
        handler: CacheHandler = importlib.import_module(self.module).HANDLER
        return handler


KINDS: dict[str, CacheKind] = {
    kind.name: kind
    for kind in (
        CacheKind(
            name="latent",
            cache_classes=("KVCache",),
            module="mlx_backend.kv_cache.latent",
            is_batched=True,
            is_grouped=True,
            is_cut=True,
            is_quantizable=True,
            is_latent=True,
            part_names=("latent", "rope"),
        ),
        CacheKind(
            name="plain",
            cache_classes=("KVCache", "QuantizedKV", "StartKV"),
            module="mlx_backend.kv_cache.plain",
            is_batched=True,
            is_grouped=True,
            is_cut=True,
            is_quantizable=True,
        ),
        CacheKind(
            name="sliding-window",
            cache_classes=("RotatingKVCache", "QuantizedWindow"),
            module="mlx_backend.kv_cache.rotating",
            is_batched=True,
            is_grouped=True,
            is_quantizable=True,
        ),
        CacheKind(
            name="recurrent",
            cache_classes=("ArraysCache",),
            module="mlx_backend.kv_cache.recurrent",
            is_batched=True,
            is_state=True,
        ),
        CacheKind(
            name="ChunkedKVCache",
            cache_classes=("ChunkedKVCache",),
            module="mlx_backend.kv_cache.chunked",
            has_position_mask=True,
        ),
    )
}
"""Kinds by name. Of kinds that share a class, the general one comes last."""


def can_group(kinds: Iterable[CacheKind]) -> bool:
    """Return whether rows of caches of these kinds can lie in groups."""
    return all(kind.is_grouped or kind.is_state for kind in kinds)


def kind_named(name: str) -> CacheKind:
    """Return the row of a kind; for a kind not in the table, named by a cache's class, one without any abilities."""
    return KINDS.get(name) or CacheKind(name=name)


def kinds_of(cache: Any) -> list[CacheKind]:
    """Return the kinds that a single cache may be of, the general one last. A CacheList has none: its members do."""
    return [kind for kind in KINDS.values() if type(cache).__name__ in kind.cache_classes]


def leaves(cache: Any) -> Iterator[Any]:
    """Yield the caches of one layer: itself, or the members of a CacheList."""
    if type(cache).__name__ == "CacheList":
        for member in cache.caches:
            yield from leaves(member)
    else:
        yield cache


def unbatched_reason(caches: Iterable[Any]) -> str | None:
    """Return the reason why these caches (one per layer) cannot be batched; None if they can."""
    for cache in caches:
        for leaf in leaves(cache):
            kinds = kinds_of(leaf)
            if not kinds or not kinds[-1].is_batched:
                return f"its KV cache is of a kind that cannot be batched ({type(leaf).__name__})"
            reason = kinds[-1].handler.unbatched_reason(leaf)
            if reason is not None:
                return reason
    return None
