"""Weight files that are elsewhere: each is fetched when a weight of it is needed, and dropped after its last. No MLX.

A file is created with its header and its final size, but without the tensors' bytes, which take no room on the disk.
MLX opens it so; its bytes are put into the same file before a weight is computed from them.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from mlx_backend.conversion.errors import ConversionError

Fetch = Callable[[str], Path]
"""Brings a whole weight file onto the disk and verifies its checksum. Raises ConversionError."""
_WHOLE = ".whole"


def make_hollow(file: Path, head: bytes, size: int) -> None:
    """Create a file of `size` bytes that begins with `head`, unless a whole one exists. Raises OSError."""
    if file.with_name(file.name + _WHOLE).exists() and file.is_file() and file.stat().st_size == size:
        return
    file.with_name(file.name + _WHOLE).unlink(missing_ok=True)
    with file.open("wb") as stream:
        stream.write(head)
        stream.truncate(size)


class RemoteFiles:
    """Weight files of a source, and its weights that still need them."""

    def __init__(self, folder: Path, fetch: Fetch) -> None:
        self._folder, self._fetch = folder, fetch
        self._needs: dict[str, frozenset[str]] = {}
        self._left: Counter[str] = Counter()

    def expect(self, needs: Mapping[str, frozenset[str]]) -> None:
        """Set the files of each weight, by its path."""
        self._needs = dict(needs)
        self._left = Counter(file for files in needs.values() for file in files)

    def require(self, paths: Iterable[str]) -> None:
        """Fetch the files that these weights are computed from. Raises ConversionError, OSError."""
        for name in sorted({file for path in paths for file in self._needs.get(path, ())}):
            whole = self._folder / (name + _WHOLE)
            if whole.exists():
                continue
            fetched = self._fetch(name)
            self._fill(self._folder / name, fetched)
            whole.touch()
            fetched.unlink(missing_ok=True)

    def release(self, paths: Iterable[str]) -> None:
        """Drop the files that no weight but these, which are already written, needs. Raises OSError."""
        for path in paths:
            for name in self._needs.pop(path, ()):
                self._left[name] -= 1
                if not self._left[name]:
                    (self._folder / (name + _WHOLE)).unlink(missing_ok=True)
                    os.truncate(self._folder / name, 0)

    def _fill(self, file: Path, fetched: Path) -> None:
        if fetched.stat().st_size != file.stat().st_size:
            raise ConversionError(f"{file.name} has another size than its repository says; try again")
        with fetched.open("rb") as source, file.open("r+b") as target:  # the same file that MLX has open
            shutil.copyfileobj(source, target, 8 << 20)
            target.flush()
            os.fsync(target.fileno())
