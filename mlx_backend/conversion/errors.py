"""The one error of conversion."""

from __future__ import annotations


class ConversionError(Exception):
    """The conversion cannot start or cannot go on; the message says what is wrong and what to do, in one line."""
