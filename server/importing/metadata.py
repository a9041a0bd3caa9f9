"""Read the metadata of a GGUF file by key, with types and bounds checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from server.importing.problems import CannotImport

_MOST = 1 << 31
Missing: Any = object()


class Metadata:
    """Metadata of one model; a key that begins with a dot gets the architecture's prefix."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values
        self.architecture = self.text("general.architecture")

    def has(self, key: str) -> bool:
        return self._name(key) in self._values

    def raw(self, key: str, default: Any = None) -> Any:
        return self._values.get(self._name(key), default)

    def whole(self, key: str, default: Any = Missing, *, least: int = 1) -> Any:
        """Return an integer of at least `least`, or the default if missing. Raises CannotImport."""
        value = self._get(key, default)
        if value is default:
            return value
        if type(value) is not int or not least <= value < _MOST:
            raise self._wrong(key, value, f"a whole number from {least}")
        return value

    def number(self, key: str, default: Any = Missing) -> Any:
        """Return a number above zero, or the default if missing. Raises CannotImport."""
        value = self._get(key, default)
        if value is default:
            return value
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
            raise self._wrong(key, value, "a number above 0")
        return _plain(float(value))

    def text(self, key: str, default: Any = Missing) -> Any:
        """Return a text, or the default if missing. Raises CannotImport."""
        value = self._get(key, default)
        if value is not default and not isinstance(value, str):
            raise self._wrong(key, value, "a text")
        return value

    def flag(self, key: str, default: Any = Missing) -> Any:
        """Return true or false, or the default if missing. Raises CannotImport."""
        value = self._get(key, default)
        if value is not default and not isinstance(value, bool):
            raise self._wrong(key, value, "true or false")
        return value

    def items(self, key: str, kind: type, default: Any = Missing) -> Any:
        """Return a list of texts or of numbers, or the default if missing. Raises CannotImport."""
        value = self._get(key, default)
        if value is default:
            return value
        if not isinstance(value, list) or not all(type(item) is kind for item in value):
            raise self._wrong(key, value, f"a list of {kind.__name__}")
        return value

    def _get(self, key: str, default: Any) -> Any:
        value = self._values.get(self._name(key), default)
        if value is Missing:
            raise CannotImport(f"the file's metadata lack {self._name(key)}")
        return value

    def _name(self, key: str) -> str:
        return self.architecture + key if key.startswith(".") else key

    def _wrong(self, key: str, value: Any, wanted: str) -> CannotImport:
        return CannotImport(f"the file's {self._name(key)} is {str(value)[:60]!r}, not {wanted}")


def _plain(value: float) -> float:
    """Return a float32 as it was intended: 0.1 is stored as 0.10000000149."""
    return float(f"{value:.7g}")
