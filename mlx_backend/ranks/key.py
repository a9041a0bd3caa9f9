"""The key that all ranks of a group share: read from a file or from standard input, never from an argument."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

LEAST_CHARACTERS = 32
_MOST_BYTES = 4096


class KeyFileError(ValueError):
    """One line: the fault of the key or its file, and the remedy."""


def read_key(given: str) -> bytes:
    """Return the key of `@FILE`, or of `@-`, a line of standard input. Raises KeyFileError."""
    if not given.startswith("@") or len(given) == 1:
        raise KeyFileError("a key is given as @FILE, the file that holds it, so that no process list shows it")
    if given == "@-":
        return derive(sys.stdin.readline(_MOST_BYTES).strip())
    file = Path(given[1:]).expanduser()
    advice = f"make one: (umask 077; openssl rand -hex 32 > {file}); and copy it to every machine"
    try:
        with file.open("rb") as stream:
            mode = os.fstat(stream.fileno()).st_mode
            content = stream.read(_MOST_BYTES + 1)
    except FileNotFoundError:
        raise KeyFileError(f"there is no key file {file}; {advice}") from None
    except OSError as error:
        raise KeyFileError(f"key file {file}: {error.strerror or error}; name a file that can be read") from None
    if mode & 0o077:
        raise KeyFileError(f"key file {file} can be read or written by others; chmod 600 {file}")
    if len(content) > _MOST_BYTES:
        raise KeyFileError(f"key file {file} is larger than {_MOST_BYTES} bytes; {advice}")
    try:
        return derive(content.decode("ascii").strip())
    except (UnicodeDecodeError, KeyFileError):
        raise KeyFileError(f"key file {file} has no {LEAST_CHARACTERS} characters of ASCII text; {advice}") from None


def derive(text: str) -> bytes:
    """Return the key derived from a text. Raises KeyFileError if the text is too short to be a secret."""
    if len(text) < LEAST_CHARACTERS:
        raise KeyFileError(f"a key of at least {LEAST_CHARACTERS} characters is needed")
    return hashlib.sha256(b"pippin ranks\0" + text.encode()).digest()
