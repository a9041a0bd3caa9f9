"""Adapters of the mock: names and folders that are never read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from mlx_backend.api.interface import AdapterConfig, AdapterInfo
from mlx_backend.model.adapter_files import AdapterFiles


class MockAdapters:
    """Implements `adapter_host.AdapterHost`: an adapter's digest is that of its folder's name."""

    files: tuple[AdapterFiles, ...] = ()

    def open(self, adapter: AdapterConfig) -> AdapterFiles:
        digest = hashlib.blake2b(adapter.path.encode(), digest_size=16).hexdigest()
        return AdapterFiles(adapter.name, Path(adapter.path), "mlx-lm", {}, digest)

    def load(self, adapters: Iterable[AdapterConfig]) -> tuple[AdapterInfo, ...]:
        """Hold the adapters that the model starts with."""
        return self.change([self.open(each) for each in adapters])

    def change(self, files: Sequence[AdapterFiles]) -> tuple[AdapterInfo, ...]:
        self.files = tuple(files)
        return tuple(AdapterInfo(name=each.name, digest=each.digest, form="mock") for each in files)

    def check(self, names: Iterable[str]) -> None:
        """Check that these are held. A row of any other would have no answer: the engine must never request one."""
        missing = {*names} - {"", *(each.name for each in self.files)}
        if missing:
            raise RuntimeError(f"rows of adapters that are not held: {sorted(missing)}")
