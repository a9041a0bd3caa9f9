"""Build the store of files and batches, and its worker, from the configuration."""

from __future__ import annotations

from pathlib import Path

from server.batches.folder import Folder
from server.batches.room import Bounds
from server.batches.store import Store
from server.batches.worker import BatchWorker, WorkerLimits
from server.config import Config, CurrentConfig

_FORM_BYTES = 1 << 16
"""Size of an upload beside its file: other fields, and the boundaries between them."""
_LINE_BYTES = 1 << 16
"""Size of a batch line beside the body of its request."""
_DAY_S = 86_400


def open_batches(settings: CurrentConfig) -> BatchWorker | None:
    """Return the worker of the configured folder, or None without one. Raises OSError."""
    folder = settings.now.batches.dir
    if folder is None:
        return None
    store = Store(Folder(Path(folder).expanduser()), lambda: _bounds(settings.now))
    return BatchWorker(store, lambda: _limits(settings.now))


def most_upload_bytes(config: Config) -> int:
    """Return the largest body of an upload."""
    return _file_bytes(config) + _FORM_BYTES if config.batches.dir is not None else config.security.max_body_bytes


def _bounds(config: Config) -> Bounds:
    batches = config.batches
    keep_s = batches.keep_days * _DAY_S
    return Bounds(int(batches.max_gb * 1e9), _file_bytes(config), batches.max_files, keep_s)


def _limits(config: Config) -> WorkerLimits:
    batches = config.batches
    return WorkerLimits(batches.max_in_flight, batches.max_lines, config.security.max_body_bytes + _LINE_BYTES)


def _file_bytes(config: Config) -> int:
    return int(config.batches.max_file_mb * 1e6)
