"""CannotImport: why something cannot be imported, in one line. Knows nothing of formats."""

from __future__ import annotations


class CannotImport(ValueError):
    """A file or name that cannot be imported; the message says which, what is wrong and what to do."""
