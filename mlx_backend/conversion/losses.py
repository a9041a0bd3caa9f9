"""A file of measured losses, for the next size and for a run that was stopped: a JSON line for each weight. No MLX.

A line is either whole or not counted, so a process can be killed at any point.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlx_backend.conversion.errors import ConversionError


class LossFile:
    """The losses of each format of each weight, by path and by the format's name; without a file, none are kept."""

    def __init__(self, file: Path | None, identity: Mapping[str, Any]) -> None:
        """Open or begin a file. `identity` holds, in JSON, everything that losses depend on. Raises ConversionError."""
        self._file = file
        self._known: dict[str, dict[str, float]] = {}
        if file is None:
            return
        head = {"losses_of": json.loads(json.dumps(identity))}
        try:
            whole, _, rest = file.read_bytes().rpartition(b"\n") if file.exists() else (b"", b"", b"")
            lines = [json.loads(line) for line in whole.splitlines()]
            if lines and lines[0] != head:
                raise ConversionError(
                    f"{file} holds losses of another model or of other samples, or no losses; choose another --losses"
                )
            self._known = {line["path"]: dict(line["losses"]) for line in lines[1:]}
            if rest or not lines:
                if rest and not lines:
                    raise ValueError("no losses")
                file.write_bytes(whole + b"\n" if lines else (json.dumps(head) + "\n").encode())
        except (ValueError, KeyError, TypeError, IndexError):
            raise ConversionError(f"{file} is no file of losses; choose another --losses") from None
        except OSError as error:
            raise ConversionError(f"{file} cannot be read or written ({error.strerror or error})") from None

    def get(self, path: str) -> Mapping[str, float] | None:
        """Return the losses of a weight by the names of its formats; None if they are still to be measured."""
        return self._known.get(path)

    def add(self, path: str, losses: Mapping[str, float]) -> None:
        """Record the measured losses of a weight. Raises ConversionError."""
        self._known[path] = dict(losses)
        if self._file is None:
            return
        try:
            with self._file.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps({"path": path, "losses": dict(losses)}) + "\n")
        except OSError as error:
            raise ConversionError(f"{self._file} cannot be written ({error.strerror or error})") from None
