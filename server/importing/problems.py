"""CannotImport: the reason something cannot be imported, in one line. Independent of formats."""

from __future__ import annotations


class CannotImport(ValueError):
    """A file or name cannot be imported; the message names it, the problem and the remedy."""
