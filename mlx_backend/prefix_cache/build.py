"""Build a prefix cache from the configuration, or give the reason why there is none. No MLX, no arrays."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mlx_backend.api.interface import EngineConfig, PrefixCacheReport
from mlx_backend.core.blocks import BlockStore
from mlx_backend.prefix_cache.cache import PrefixCache
from mlx_backend.prefix_cache.disk import DiskTier
from mlx_backend.prefix_cache.files import VERSION
from mlx_backend.prefix_cache.identity import fingerprint, weights_digest

logger = logging.getLogger("pippin.prefix_cache")

_SHARE = 2
"""One part in this many of the memory beside weights is used by default; live requests come first."""
_UNBOUNDED_BYTES = 1_000_000_000
"""Size if nothing bounds memory."""


def build_prefix_cache(
    config: EngineConfig,
    store: BlockStore | None,
    free_bytes: int | None,
    wake: Callable[[], None],
    adapters: Mapping[str, str] = MappingProxyType({}),
) -> tuple[PrefixCache | None, PrefixCacheReport]:
    """Return a prefix cache (None if it is off) and its report.

    `free_bytes`: memory left by weights and reserve, None for no bound. `wake`: see DiskTier. `adapters`: their digests
    by name.
    """
    wanted = config.prefix_cache
    if not wanted.enabled:
        return None, PrefixCacheReport(reason="prefix_cache.enabled is false")
    if store is None:
        return None, PrefixCacheReport(reason="this model's KV caches are of a kind that it cannot keep")
    ram_bytes = wanted.ram_bytes
    if ram_bytes is None:
        ram_bytes = _UNBOUNDED_BYTES if free_bytes is None else free_bytes // _SHARE
    facts = _facts(config)
    identity = fingerprint(facts)
    disk = None
    if wanted.dir is not None:
        disk = DiskTier(Path(wanted.dir).expanduser(), identity.hex(), facts, wake)
    try:
        cache = PrefixCache(wanted, store, identity, ram_bytes, disk, adapters)
    except OSError as error:
        logger.warning("prefix_cache.dir %s cannot be used (%s); what is kept is in memory only", wanted.dir, error)
        if disk is not None:
            disk.close()
        disk, cache = None, PrefixCache(wanted, store, identity, ram_bytes, None, adapters)
    report = PrefixCacheReport(
        kinds=store.kinds,
        needs_snapshots=not store.cuts,
        chunk_tokens=wanted.chunk_tokens,
        ram_bytes=ram_bytes,
        folder=None if disk is None else wanted.dir,
        max_bytes=wanted.max_bytes,
        num_disk_blocks=cache.stats().num_disk_blocks,
    )
    return cache, report


def _facts(config: EngineConfig) -> dict[str, Any]:
    """Return everything that the values of a KV cache depend on, except the tokens."""
    folder = Path(config.model_path)
    facts: dict[str, Any] = {
        "format": VERSION,
        "backend": config.backend,
        "model": folder.name,
        "weights": weights_digest(folder) if folder.is_dir() else config.model_path,
        "kv_cache": asdict(config.kv_cache),
        "chunk_tokens": config.prefix_cache.chunk_tokens,
    }
    if config.backend == "mlx":
        facts["mlx_lm"] = metadata.version("mlx-lm")
    return facts
