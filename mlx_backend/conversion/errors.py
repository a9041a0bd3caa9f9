"""The only error of conversion."""

from __future__ import annotations


class ConversionError(Exception):
    """The conversion cannot start or continue; the message states the fault and what to do, in one line."""
