"""Signatures of thoughts: what a client sends back with a thought, or in its place where it asked not to see it.

A signature proves nothing here, since a thought of another origin is as good as one of this server's. Where a thought
is left out of the answer, the signature holds it: the next request's prompt is the same as if it had been there.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import zlib

_PACKED = "pippin.thought."
_MARK = "pippin."
MOST_BYTES = 4 << 20
"""Bytes of the thoughts that a request brings back, at most: a few packed bytes can stand for very many."""


def sign(thought: str) -> str:
    """The signature of a thought that the answer shows."""
    return _MARK + hashlib.blake2b(thought.encode(), digest_size=16).hexdigest()


def pack(thought: str) -> str:
    """The signature that holds a thought."""
    return _PACKED + base64.b64encode(zlib.compress(thought.encode())).decode()


def unpack(signature: str) -> str | None:
    """The thought that a signature holds; None where it holds none. Raises ValueError where it is damaged."""
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
