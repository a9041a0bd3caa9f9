"""Memory that the C allocator keeps after a large piece of work, given back to the system.

Tokenizing a long text briefly takes hundreds of bytes per token, and malloc would keep them: beside a model that fills
the machine, that memory would be lost.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import cache


def give_back() -> None:
    """Return free memory to the system; takes milliseconds. Does nothing if the system has no call for it."""
    trim = _find()
    if trim is not None:
        trim()


@cache
def _find() -> Callable[[], object] | None:
    """Return malloc_trim(3) of glibc, or malloc_zone_pressure_relief of macOS (malloc/malloc.h), not run on a Mac."""
    library = ctypes.CDLL(None)
    if sys.platform == "darwin":
        relief = getattr(library, "malloc_zone_pressure_relief", None)
        return None if relief is None else lambda: relief(None, ctypes.c_size_t(0))
    trim = getattr(library, "malloc_trim", None)
    return None if trim is None else lambda: trim(ctypes.c_size_t(0))
