"""Reasoning as `encrypted_content`: an opaque value that a client stores and sends back.

Nothing is secret here, because the same reasoning is available as plain text; clients already support this form.
"""

from __future__ import annotations

import base64

_MARK = "pippin1."
MOST_CHARS = 1 << 20
"""Most characters of sealed reasoning; longer reasoning returns as its plain text or not at all."""


def seal(text: str) -> str | None:
    """Return the text encoded as letters; None if it is too long."""
    if len(text) > MOST_CHARS:
        return None
    return _MARK + base64.urlsafe_b64encode(text.encode()).decode()


def unseal(sealed: str) -> str:
    """Return the text; empty if another server sealed it, or if it was changed."""
    if not sealed.startswith(_MARK) or len(sealed) > 6 * MOST_CHARS:
        return ""
    try:
        return base64.b64decode(sealed[len(_MARK) :], altchars=b"-_", validate=True).decode()
    except ValueError:  # includes UnicodeDecodeError and binascii.Error
        return ""
