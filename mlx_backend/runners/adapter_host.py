"""Interface of a runner that loads and unloads adapters while it serves. No MLX."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from mlx_backend.api.interface import AdapterConfig, AdapterInfo
from mlx_backend.model.adapter_files import AdapterFiles


class AdapterHost(Protocol):
    """The adapters of a loaded model. The device thread owns it; any thread may call `open`."""

    @property
    def files(self) -> tuple[AdapterFiles, ...]:
        """Return the adapters that are held, in the order in which they were loaded."""

    def open(self, adapter: AdapterConfig) -> AdapterFiles:
        """Read and check an adapter's files, without its weights. Raises ModelLoadError."""

    def change(self, files: Sequence[AdapterFiles]) -> tuple[AdapterInfo, ...]:
        """Hold exactly these. Raises ModelLoadError; then nothing has changed.

        The factors of adapters that stay are taken from memory, not from their files.
        """


@runtime_checkable
class HasAdapters(Protocol):
    """A runner that can change its adapters. Any other serves those that it was loaded with."""

    adapters: AdapterHost
