"""API keys: the file that holds their hashes, and the ring that requests are compared with.

A line is `name:hash` or `name:hash:admin,requests_per_minute=60,tokens_per_minute=100000,priority=batch`. The hash is
SHA-256, once: a key is 256 random bits, which no dictionary holds, so that a slow hash would cost every request and
gain nothing. The key itself is printed once, when it is made, and stored nowhere. Independent of HTTP.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import secrets
import stat
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_backend.api.interface import PRIORITIES, Priority

logger = logging.getLogger("pippin.security")

RECHECK_S = 1.0
"""Shortest interval between checks of whether the file has changed."""
_PREFIX = "pippin_"
_MAX_BYTES = 1 << 20
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HASH = re.compile(r"[0-9a-f]{64}")
_ADMIN = "admin"
_LIMITS = ("requests_per_minute", "tokens_per_minute")
_PRIORITY = "priority"

Signature = tuple[int, int, int, int]
"""Changes with a file's text and with its permissions: a file that was unreadable is read once it is readable."""


class KeysError(Exception):
    """A keys file is unusable; one line with the file, the place and the remedy. It quotes no hash."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A key's name, hash, and limits; None: the configured limit."""

    name: str
    hash: str
    is_admin: bool = False
    """Allows loading and unloading models."""
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    priority: Priority = "live"
    """The most urgent class that its requests may be of."""


def new_key() -> str:
    """Return a key of 256 random bits, as a client sends it."""
    return _PREFIX + secrets.token_urlsafe(32)


def hash_of(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


# --- the file


def read_keys(path: Path) -> tuple[Key, ...]:
    """Return all keys of a file. Raises KeysError."""
    return parse(path, _read(path)[0])


def parse(path: Path, text: str) -> tuple[Key, ...]:
    """Return the keys of a file's text. Raises KeysError, with the line number."""
    keys: dict[str, Key] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            key = _parse_line(line.strip())
            if key.name in keys:
                raise ValueError(f"the name {key.name!r} appears twice")
        except ValueError as error:
            raise KeysError(f"keys file {path}, line {number}: {error}") from None
        keys[key.name] = key
    return tuple(keys.values())


def add(path: Path, name: str, *, is_admin: bool = False, **limits: int | str | None) -> str:
    """Add a new key's hash to the file, creating it if necessary; return the key. Raises KeysError."""
    if not _NAME.fullmatch(name):
        raise KeysError(
            "a key's name must have 1 to 64 letters, digits, '.', '_' or '-', and begin with a letter or digit"
        )
    text = _read(path)[0] if path.exists() else ""
    if any(key.name == name for key in parse(path, text)):
        raise KeysError(f"keys file {path}: the key {name!r} already exists; revoke it first, or choose another name")
    if limits.get(_PRIORITY) not in (None, *PRIORITIES):
        raise KeysError(f"priority must be one of {', '.join(PRIORITIES)}, not {limits[_PRIORITY]!r}")
    key = new_key()
    given = [f"{limit}={value}" for limit, value in limits.items() if value is not None]
    options = ",".join([*([_ADMIN] if is_admin else []), *given])
    line = f"{name}:{hash_of(key)}" + (f":{options}" if options else "")
    _write(path, [*text.splitlines(), line])
    return key


def revoke(path: Path, name: str) -> None:
    """Remove a key from the file. Raises KeysError."""
    text = _read(path)[0]
    if all(key.name != name for key in parse(path, text)):
        raise KeysError(f"keys file {path}: no key {name!r}; `pippin keys list` shows the names")
    _write(path, [line for line in text.splitlines() if line.strip().partition(":")[0] != name])


def _parse_line(line: str) -> Key:
    name, _, rest = line.partition(":")
    hash, _, options = rest.partition(":")
    if not _NAME.fullmatch(name) or not _HASH.fullmatch(hash):
        raise ValueError("is not name:hash with a SHA-256 hash of 64 hexadecimal digits; use `pippin keys add`")
    told = [option.strip() for option in options.split(",") if option]
    limits = dict(_parse_option(option) for option in told if option != _ADMIN)
    return Key(name=name, hash=hash, is_admin=_ADMIN in told, **limits)


def _parse_option(option: str) -> tuple[str, Any]:
    name, _, value = (part.strip() for part in option.partition("="))
    if name == _PRIORITY:
        if value not in PRIORITIES:
            raise ValueError(f"{name} must be one of {', '.join(PRIORITIES)}, not {value!r}")
        return name, value
    if name not in _LIMITS:
        raise ValueError(f"unknown option {name!r}; use {', '.join((_ADMIN, *_LIMITS, _PRIORITY))}")
    if not value.isascii() or not value.isdecimal() or int(value) < 1:
        raise ValueError(f"{name} must be a whole number from 1")
    return name, int(value)


def _read(path: Path) -> tuple[str, Signature]:
    """Return a file's text and its signature; refuse a file that others than its owner can access."""
    try:
        # Opening a FIFO would block, so it is opened without blocking, and then refused.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise KeysError(f"keys file {path}: is not a file")
            if found.st_mode & 0o077:
                raise KeysError(f"keys file {path}: other users can read or write it; run `chmod 600 {path}`")
            if found.st_uid not in (os.geteuid(), 0):
                raise KeysError(f"keys file {path}: belongs to another user")
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise KeysError(f"keys file {path}: {error.strerror or error}") from None
    if len(content) > _MAX_BYTES:
        raise KeysError(f"keys file {path}: is larger than {_MAX_BYTES} bytes")
    try:
        return content.decode(), _signature(found)
    except UnicodeDecodeError:
        raise KeysError(f"keys file {path}: is not text in UTF-8") from None


def _signature(found: os.stat_result) -> Signature:
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino


def _write(path: Path, lines: Iterable[str]) -> None:
    """Write the file atomically; it is never readable by others."""
    target = path.resolve()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=target.parent, delete=False, encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines)
            file.flush()
            os.fsync(file.fileno())
        os.replace(file.name, target)
    except OSError as error:
        raise KeysError(f"keys file {path}: {error.strerror or error}") from None


# --- the ring


@dataclass(frozen=True, slots=True)
class Reading:
    """A check of the keys file: its keys, or the failure; both None if it is unchanged."""

    keys: tuple[Key, ...] | None = None
    signature: Signature | None = None
    failure: str | None = None


class KeyRing:
    """Currently valid keys. A changed file is read again; an unreadable file changes nothing.

    `read` is thread-safe and may take long; everything else belongs to the event loop.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """Read the file. Raises KeysError."""
        self._path = path
        self._clock = clock
        self._checked_at = clock()
        text, self._signature = _read(path)
        self._keys = parse(path, text)
        self._failure: str | None = None
        if not self._keys:
            logger.warning("keys file %s has no keys: every request will be refused", path)

    def find(self, sent: str) -> Key | None:
        """Return the key that was sent. Compares every hash, each in constant time: the duration reveals nothing."""
        hash, found = hash_of(sent), None
        for key in self._keys:
            if hmac.compare_digest(key.hash, hash):
                found = key
        return found

    def named(self, name: str) -> Key | None:
        """Return the key of this name; None where it is not valid any more."""
        return next((key for key in self._keys if key.name == name), None)

    @property
    def is_due(self) -> bool:
        """Whether the last check of the file was at least RECHECK_S ago."""
        return self._clock() - self._checked_at >= RECHECK_S

    def begin(self) -> None:
        """Record the start of a check of the file."""
        self._checked_at = self._clock()

    def read(self) -> Reading:
        """Check the file, and read it if it has changed since the last reading. Changes no state."""
        try:
            if _signature(os.stat(self._path)) == self._signature:
                return Reading()
            text, signature = _read(self._path)
            return Reading(parse(self._path, text), signature)
        except OSError as error:
            return Reading(failure=f"keys file {self._path}: {error.strerror or error}")
        except KeysError as error:
            return Reading(failure=str(error))

    def take(self, reading: Reading) -> frozenset[str]:
        """Apply the keys of a reading; return the hashes of the keys that are no longer valid."""
        if reading.failure is not None:
            if reading.failure != self._failure:  # each failure is logged once
                logger.error("%s; keeping the previous keys", reading.failure)
            self._failure = reading.failure
            return frozenset()
        self._failure = None
        if reading.keys is None or reading.signature is None:
            return frozenset()
        former, self._keys, self._signature = self._keys, reading.keys, reading.signature
        logger.info("keys file %s reloaded: %d keys", self._path, len(self._keys))
        return frozenset(key.hash for key in former) - frozenset(key.hash for key in self._keys)

    def reload(self) -> frozenset[str]:
        """Check the file synchronously; return the hashes of the keys that are no longer valid."""
        self.begin()
        return self.take(self.read())
