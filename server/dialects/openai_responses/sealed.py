"""Thoughts as `encrypted_content`: what a client keeps and sends back without looking at it.

Nothing is secret here, since the same thought can be had in plain text; the form is what clients know how to keep.
"""

from __future__ import annotations

import base64

_MARK = "pippin1."
MOST_CHARS = 1 << 20
"""Characters of a sealed thought, at most; a longer one comes back as its plain text or not at all."""


def seal(text: str) -> str | None:
    """The text in letters; None where it is too long."""
    if len(text) > MOST_CHARS:
        return None
    return _MARK + base64.urlsafe_b64encode(text.encode()).decode()


def unseal(sealed: str) -> str:
    """The text; empty where another server sealed it, or it was changed."""
    if not sealed.startswith(_MARK) or len(sealed) > 6 * MOST_CHARS:
        return ""
    try:
        return base64.b64decode(sealed[len(_MARK) :], altchars=b"-_", validate=True).decode()
    except ValueError:  # UnicodeDecodeError and binascii.Error are
        return ""
