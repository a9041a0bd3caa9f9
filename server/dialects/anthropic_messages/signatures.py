"""Signatures of reasoning: sent back by a client with the reasoning, or in its place if it is hidden.

A signature proves nothing here: reasoning of any origin is accepted. If reasoning is hidden from the answer, the
signature contains it, so that the next request's prompt is the same as if it had been shown.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import zlib

_PACKED = "pippin.thought."
_MARK = "pippin."
MOST_BYTES = 4 << 20
"""Most bytes of reasoning that a request restores: a few packed bytes can expand to very many."""


def sign(thought: str) -> str:
    """Return the signature of reasoning that the answer shows."""
    return _MARK + hashlib.blake2b(thought.encode(), digest_size=16).hexdigest()


def pack(thought: str) -> str:
    """Return the signature that contains the reasoning."""
    return _PACKED + base64.b64encode(zlib.compress(thought.encode())).decode()


def unpack(signature: str) -> str | None:
    """Return the reasoning within a signature; None if it contains none. Raises ValueError if it is damaged."""
    if not signature.startswith(_PACKED):
        return None
    try:
        unpacker = zlib.decompressobj()
        found = unpacker.decompress(base64.b64decode(signature[len(_PACKED) :], validate=True), MOST_BYTES)
        if not unpacker.eof:
            raise ValueError("it is cut, or too large")
        return found.decode()
    except (binascii.Error, zlib.error, UnicodeError) as error:
        raise ValueError(str(error)) from None
