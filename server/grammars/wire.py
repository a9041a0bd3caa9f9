"""Frames between the server, the host and the grammar processes, over stream sockets.

A frame is a length, a kind and a body. Imports only the standard library: the host starts in milliseconds.
"""

from __future__ import annotations

import socket
import struct
import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

_HEADER = struct.Struct("<IB")
_STATE = struct.Struct("<I")
_ANSWER = struct.Struct("<QI")
_MASK = struct.Struct("<I?I")
_COMPILED = struct.Struct("<Qd")
_DIED = struct.Struct("<i")
_VOCABULARY = struct.Struct("<III")
HEADER_BYTES = _HEADER.size
BUFFER_BYTES = 256 * 1024
"""Buffer of a grammar's socket: a mask of a large vocabulary, 32 KB, passes in one piece. macOS defaults to 8 KB."""


class Kind(IntEnum):
    """Meaning of a frame."""

    VOCABULARY = 1
    """To the host: the tokens."""
    READY = 2
    """From the host: it can fork."""
    SOURCE = 3
    """To a grammar process: the source to compile."""
    COMPILED = 4
    """The grammar can be followed; bytes of the process, and processor seconds used."""
    REFUSED = 5
    """The grammar cannot be honoured; the reason."""
    ASK = 6
    """To a grammar process: tokens written by some sequences; requests the next mask of each."""
    DROP = 7
    """To a grammar process: a sequence has ended."""
    ANSWER = 8
    """The requested mask of each sequence, or the reason why its grammar cannot be followed any further."""
    DIED = 9
    """From the host, in place of a process that has ended: its wait status."""


class Closed(Exception):
    """The other side has closed the socket."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A tokenizer's tokens as bytes, by id; `special_ids` have names in place of bytes."""

    tokens: Sequence[bytes]
    eos_ids: Sequence[int]
    special_ids: Sequence[int]


@dataclass(frozen=True, slots=True)
class Ask:
    """One sequence, by the id of its state, and the tokens written since its last request."""

    state_id: int
    token_ids: Sequence[int]
    draft_ids: Sequence[int] = ()
    """Tokens that may come next: requests the masks after each of them, too."""


@dataclass(frozen=True, slots=True)
class Mask:
    """Allowed next tokens of one sequence: a bit for each, in little-endian words of 32."""

    state_id: int
    bits: bytes = b""
    behind: tuple[bytes, ...] = ()
    """Masks after each token of a draft, up to the first that is not allowed."""
    failure: str | None = None
    """Reason why the grammar cannot be followed any further, in place of the bits."""


@dataclass(frozen=True, slots=True)
class Death:
    """End of a grammar process: its wait status, or None if it could not be started."""

    status: int | None


def frame(kind: Kind, *parts: bytes) -> bytes:
    """Return a complete frame."""
    body = b"".join(parts)
    return _HEADER.pack(len(body), kind) + body


def read_header(header: bytes) -> tuple[int, Kind]:
    """Return (length of the body, kind)."""
    length, kind = _HEADER.unpack(header)
    return length, Kind(kind)


def receive(sock: socket.socket) -> tuple[Kind, bytes]:
    """Return the next frame of a blocking socket. Raises Closed and OSError."""
    length, kind = read_header(_receive_exactly(sock, HEADER_BYTES))
    return kind, _receive_exactly(sock, length)


def _receive_exactly(sock: socket.socket, num_bytes: int) -> bytes:
    if num_bytes == 0:
        return b""
    first = sock.recv(num_bytes)
    if len(first) == num_bytes:
        return first
    pieces, num_left = [first], num_bytes - len(first)
    while pieces[-1] and num_left:
        pieces.append(sock.recv(num_left))
        num_left -= len(pieces[-1])
    if num_left:
        raise Closed
    return b"".join(pieces)


# --- bodies


def pack_vocabulary(vocabulary: Vocabulary) -> bytes:
    lengths = array("I", map(len, vocabulary.tokens))
    ids = array("I", [*vocabulary.eos_ids, *vocabulary.special_ids])
    counts = _VOCABULARY.pack(len(lengths), len(vocabulary.eos_ids), len(vocabulary.special_ids))
    return b"".join((counts, lengths.tobytes(), ids.tobytes(), *vocabulary.tokens))


def unpack_vocabulary(body: bytes) -> Vocabulary:
    num_tokens, num_eos, num_special = _VOCABULARY.unpack_from(body)
    numbers = array("I")
    start = _VOCABULARY.size + numbers.itemsize * (num_tokens + num_eos + num_special)
    numbers.frombytes(body[_VOCABULARY.size : start])
    tokens = []
    for length in numbers[:num_tokens]:
        tokens.append(body[start : start + length])
        start += length
    ids = numbers[num_tokens:]
    return Vocabulary(tokens, ids[:num_eos].tolist(), ids[num_eos:].tolist())


def pack_source(larks: Sequence[str]) -> bytes:
    """Pack a grammar and its parts. Raises UnicodeEncodeError."""
    encoded = [lark.encode() for lark in larks]
    return array("I", [len(encoded), *map(len, encoded)]).tobytes() + b"".join(encoded)


def unpack_source(body: bytes) -> list[str]:
    """Return the grammar in Lark, followed by those of its parts that may allow nothing."""
    size = array("I").itemsize
    lengths = array("I")
    lengths.frombytes(body[size : size * (1 + int.from_bytes(body[:size], sys.byteorder))])
    start, larks = size * (1 + len(lengths)), []
    for length in lengths:
        larks.append(body[start : start + length].decode())
        start += length
    return larks


def pack_asks(asks: Sequence[Ask]) -> bytes:
    numbers = array("I")
    for ask in asks:
        numbers.extend((ask.state_id, len(ask.token_ids), len(ask.draft_ids), *ask.token_ids, *ask.draft_ids))
    return numbers.tobytes()


def unpack_asks(body: bytes) -> list[Ask]:
    numbers = array("I", body)
    asks, place = [], 0
    while place < len(numbers):
        state_id, num_tokens, num_drafts = numbers[place : place + 3]
        drafts = place + 3 + num_tokens
        end = drafts + num_drafts
        asks.append(Ask(state_id, numbers[place + 3 : drafts].tolist(), tuple(numbers[drafts:end])))
        place = end
    return asks


def pack_drop(state_id: int) -> bytes:
    return _STATE.pack(state_id)


def unpack_drop(body: bytes) -> int:
    state_id: int = _STATE.unpack(body)[0]
    return state_id


def pack_answer(used_bytes: int, masks: Sequence[Mask]) -> bytes:
    parts = [_ANSWER.pack(used_bytes, len(masks))]
    for mask in masks:
        contents = (mask.bits, *mask.behind) if mask.failure is None else (mask.failure.encode(),)
        parts.append(_MASK.pack(mask.state_id, mask.failure is None, len(contents)))
        for content in contents:
            parts += (_STATE.pack(len(content)), content)
    return b"".join(parts)


def unpack_answer(body: bytes) -> tuple[int, list[Mask]]:
    """Return (bytes that the process uses, masks)."""
    used_bytes, count = _ANSWER.unpack_from(body)
    masks, place = [], _ANSWER.size
    for _ in range(count):
        state_id, is_mask, num_contents = _MASK.unpack_from(body, place)
        place += _MASK.size
        contents = []
        for _ in range(num_contents):
            (length,) = _STATE.unpack_from(body, place)
            place += _STATE.size
            contents.append(body[place : place + length])
            place += length
        first, behind = contents[0], tuple(contents[1:])
        mask = Mask(state_id, first, behind) if is_mask else Mask(state_id, failure=first.decode("utf-8", "replace"))
        masks.append(mask)
    return used_bytes, masks


def pack_compiled(used_bytes: int, cpu_s: float) -> bytes:
    return _COMPILED.pack(used_bytes, cpu_s)


def unpack_compiled(body: bytes) -> tuple[int, float]:
    return _COMPILED.unpack(body)


def pack_died(death: Death) -> bytes:
    return _DIED.pack(-1 if death.status is None else death.status)


def unpack_died(body: bytes) -> Death:
    (status,) = _DIED.unpack(body)
    return Death(None if status < 0 else status)
